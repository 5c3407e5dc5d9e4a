//! A driver of Spark's, looked at by its own pages.

use super::super::engine::Watch;
use super::super::page::{Error, Pages};
use super::super::view::{Demand, DriverSeen};
use super::pages;
use futures::FutureExt;
use futures::future::BoxFuture;

/// One driver's pages, and its application.
pub struct Driver {
    pages: Pages,
    application: Option<String>,
}

impl Driver {
    pub fn new(pages: Pages) -> Self {
        Driver { pages, application: None }
    }

    async fn seen(&mut self) -> Result<DriverSeen, Error> {
        let gauges = self.read("/metrics/json/", pages::gauges).await?;
        let application = match &self.application {
            Some(application) => application.clone(),
            None => {
                let path = "/api/v1/applications";
                let read = self.read(path, pages::application).await?;
                let known = read.ok_or_else(|| Error::Unreadable {
                    path: path.into(),
                    why: "no application yet".into(),
                })?;
                self.application.insert(known).clone()
            }
        };
        let below = |what: &str| format!("/api/v1/applications/{application}/{what}");
        let executors = self.read(&below("executors"), pages::executors).await?;
        let demand = match gauges {
            Some(executors) => Demand::Executors(executors),
            None => Demand::Tasks(self.read(&below("stages?status=active"), pages::stages).await?),
        };
        Ok(DriverSeen { demand, executors })
    }

    async fn read<T>(&mut self, path: &str, read: fn(&[u8]) -> Result<T, String>) -> Result<T, Error> {
        let page = self.pages.get(path).await?;
        read(&page).map_err(|why| Error::Unreadable { path: path.to_owned(), why })
    }
}

impl Watch for Driver {
    fn look(&mut self) -> BoxFuture<'_, Result<DriverSeen, Error>> {
        self.seen().boxed()
    }
}
