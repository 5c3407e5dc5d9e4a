//! The kinds that the API serves, each with what only it needs.

pub mod archives;
pub mod cluster;
pub mod files;
pub mod host;
pub mod image;
pub mod instance;
pub mod job;
pub mod network;
pub mod operation;
pub mod project;
pub mod secret;
pub mod token;
pub mod volume;

use super::App;
use super::objects::routes as of;
use axum::Router;

/// The routes of every kind.
pub fn routes() -> Router<App> {
    Router::new()
        .merge(of::<enoki_api::host::HostSpec>())
        .merge(of::<enoki_api::project::ProjectSpec>())
        .merge(of::<enoki_api::network::NetworkSpec>())
        .merge(of::<enoki_api::volume::VolumeSpec>())
        .merge(of::<enoki_api::secret::SecretSpec>())
        .merge(of::<enoki_api::image::ImageSpec>())
        .merge(of::<enoki_api::instance::InstanceSpec>())
        .merge(of::<enoki_api::cluster::ClusterSpec>())
        .merge(of::<enoki_api::job::JobSpec>())
        .merge(of::<enoki_api::token::TokenSpec>())
        .merge(of::<enoki_api::operation::OperationSpec>())
        .merge(image::routes())
        .merge(files::routes())
        .merge(operation::routes())
        .merge(job::routes())
}
