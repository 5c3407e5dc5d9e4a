//! The address from which this machine's Docker pulls: who is served, what goes on to the server, what is told of it.

use enoki_agent::image::mirror::{Mirror, Place, Source};
use enoki_agent::session::socket::Dialer;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};

/// A server that answers each request with the next of these and keeps what it was asked.
fn server(path: &Path, answers: &'static [&'static str]) -> Arc<Mutex<Vec<String>>> {
    let listener = UnixListener::bind(path).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = asked.clone();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            kept.lock().unwrap().push(String::from_utf8_lossy(&request[..length]).into_owned());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    asked
}

/// As Docker asks: the answer whole.
async fn ask(place: &Place, method: &str, path: &str, headers: &str) -> String {
    let address = place.reference.split('/').next().unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn basic(password: &str) -> String {
    use base64::Engine;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("enoki:{password}"));
    format!("Authorization: Basic {pair}\r\n")
}

#[tokio::test]
async fn only_this_machines_docker_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let asked = server(
        &socket,
        &[
            "HTTP/1.1 206 Partial Content\r\ncontent-length: 5\r\ncontent-range: bytes 1-5/9\r\n\r\nbytes",
            "HTTP/1.1 403 Forbidden\r\ncontent-length: 50\r\n\r\n{\"errors\":[{\"code\":\"DENIED\",\"message\":\"not you\"}]}",
        ],
    );
    let mirror = Mirror::new(Dialer::unix(&socket));
    let digest = format!("sha256:{}", "ab".repeat(32));
    assert!(mirror.place("../etc").await.is_err());
    let place = mirror.place(&digest).await.unwrap();
    let (address, reference) = place.reference.split_once('/').unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    assert_eq!(reference, format!("images/{}@{digest}", "ab".repeat(32)));
    let path = format!("/v2/images/{}/blobs/{digest}", "ab".repeat(32));

    // Another user of this machine, by guessing; and what is no pull.
    for (method, path, headers, status) in [
        ("GET", path.as_str(), String::new(), "401"),
        ("GET", "/v2/", String::new(), "401"),
        ("GET", &path, basic("guess"), "401"),
        ("PUT", &path, basic(&place.login.password), "405"),
        ("GET", "/agent/v1/certificate", basic(&place.login.password), "404"),
        ("GET", "/v2/", basic(&place.login.password), "200"),
    ] {
        let answer = ask(&place, method, path, &headers).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{method} {path}: {answer}");
    }
    assert!(asked.lock().unwrap().is_empty(), "none of these is the server's affair");

    let range = format!("{}Range: bytes=1-\r\n", basic(&place.login.password));
    let answer = ask(&place, "GET", &path, &range).await;
    assert!(answer.starts_with("HTTP/1.1 206") && answer.ends_with("bytes"), "{answer}");
    {
        let asked = asked.lock().unwrap();
        let request = asked[0].to_lowercase();
        assert!(
            request.starts_with(&format!("get {path} ")) && request.contains("range: bytes=1-"),
            "{request}"
        );
        assert!(!request.contains("authorization"), "the password stays on this machine: {request}");
    }
    assert_eq!(mirror.refusal(&digest), None);

    // A refusal is passed on, remembered in its own words, and forgotten with the next try.
    let answer = ask(&place, "GET", &path, &basic(&place.login.password)).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("not you"), "{answer}");
    let refusal = mirror.refusal(&digest).unwrap();
    assert!(refusal.contains("403") && refusal.contains("not you"), "{refusal}");
    mirror.place(&digest).await.unwrap();
    assert_eq!(mirror.refusal(&digest), None);
}

#[tokio::test]
async fn a_server_that_is_away_is_told() {
    let mirror = Mirror::new(Dialer::unix("/nowhere/agent.sock"));
    let digest = format!("sha256:{}", "cd".repeat(32));
    let place = mirror.place(&digest).await.unwrap();
    let path = format!("/v2/images/{}/manifests/{digest}", "cd".repeat(32));
    let answer = ask(&place, "HEAD", &path, &basic(&place.login.password)).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let refusal = mirror.refusal(&digest).unwrap();
    assert!(refusal.contains("/nowhere/agent.sock"), "{refusal}");
}
