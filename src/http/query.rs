//! What stands behind the `?` of a request. Unknown parameters are refused, so that a typo is not a silent no-op.

use axum::extract::FromRequestParts;
use axum::http::{HeaderMap, header, request::Parts};
use enoki_api::error::{Code, Problem};
use enoki_api::list::Selector;
use enoki_api::quantity::Span;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

use super::answer::Refusal;

/// The longest a request may wait.
const WAIT_MAX: Duration = Duration::from_secs(600);
const WAIT_DEFAULT: Duration = Duration::from_secs(30);
/// Items of one page.
pub const PAGE_MAX: usize = 1000;
pub const PAGE_DEFAULT: usize = 500;

/// The parameters of a request, decoded; each handler takes what it knows and [`Params::done`] refuses the rest.
pub struct Params(BTreeMap<String, String>);

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        Ok(Params::parse(parts.uri.query().unwrap_or_default())?)
    }
}

fn decode(query: Option<&str>) -> Vec<(String, String)> {
    let plain = |text: &str| {
        let text = text.replace('+', " ");
        percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (plain(k), plain(v))).collect()
}

/// The revision that the answer must have reached.
pub fn at_least(query: Option<&str>) -> Result<Option<u64>, Problem> {
    let value = decode(query).into_iter().find(|(key, _)| key == "at_least");
    value.map(|(_, value)| number("at_least", &value)).transpose()
}

fn number(field: &str, text: &str) -> Result<u64, Problem> {
    text.parse().map_err(|_| Problem::invalid_field(field, format!("`{text}` is not a number")))
}

fn moment(field: &str, text: &str) -> Result<Timestamp, Problem> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let span: Span = text.parse().map_err(|_| {
        Problem::invalid_field(field, format!("`{text}` is neither a time nor a duration, as in 10m"))
    })?;
    let ago = span.signed();
    Timestamp::now().checked_sub(ago).map_err(|_| Problem::invalid_field(field, "that is too long ago"))
}

/// What a write waits for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wait {
    pub target: String,
    pub limit: Duration,
}

impl Params {
    pub fn parse(query: &str) -> Result<Self, Problem> {
        let mut params = BTreeMap::new();
        for (key, value) in decode(Some(query)) {
            if params.insert(key.clone(), value).is_some() {
                return Err(Problem::invalid_field(&key, format!("`{key}` is given twice")));
            }
        }
        params.remove("at_least");
        Ok(Params(params))
    }

    pub fn take(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    pub fn flag(&mut self, key: &str) -> Result<bool, Problem> {
        match self.take(key).as_deref() {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(other) => Err(Problem::invalid_field(key, format!("`{other}` is neither true nor false"))),
        }
    }

    pub fn number(&mut self, key: &str) -> Result<Option<u64>, Problem> {
        self.take(key).map(|text| number(key, &text)).transpose()
    }

    /// An RFC 3339 time, or how long ago.
    pub fn moment(&mut self, key: &str) -> Result<Option<Timestamp>, Problem> {
        self.take(key).map(|text| moment(key, &text)).transpose()
    }

    pub fn selector(&mut self) -> Result<Selector, Problem> {
        Selector::parse("selector", &self.take("selector").unwrap_or_default())
    }

    pub fn page(&mut self) -> Result<usize, Problem> {
        let limit = self.number("limit")?.unwrap_or(PAGE_DEFAULT as u64);
        if limit == 0 || limit > PAGE_MAX as u64 {
            return Err(Problem::invalid_field("limit", format!("a page has 1 to {PAGE_MAX} items"))
                .hint("follow `continue` for the rest"));
        }
        Ok(limit as usize)
    }

    pub fn wait(&mut self) -> Result<Option<Wait>, Problem> {
        let (target, limit) = (self.take("wait"), self.take("timeout"));
        let Some(target) = target else {
            return match limit {
                None => Ok(None),
                Some(_) => {
                    Err(Problem::invalid_field("timeout", "there is nothing to wait for: set `wait` too"))
                }
            };
        };
        let limit = match limit {
            None => WAIT_DEFAULT,
            Some(text) => text
                .parse::<Span>()
                .map_err(|error| Problem::new(Code::InvalidQuantity, error.to_string()).field("timeout"))?
                .duration(),
        };
        if limit > WAIT_MAX {
            return Err(Problem::invalid_field("timeout", "at most 10m"));
        }
        Ok(Some(Wait { target, limit }))
    }

    /// Refuses what nobody took.
    pub fn done(self) -> Result<(), Problem> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(key) => {
                Err(Problem::new(Code::UnknownField, format!("there is no parameter `{key}` here"))
                    .field(key))
            }
        }
    }
}

/// The revision of `If-Match`. None: any.
pub fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let bare = text.trim_matches('"');
    bare.parse()
        .map(Some)
        .map_err(|_| Problem::invalid_field("If-Match", format!("`{text}` is not a revision")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(query: &str) -> Params {
        Params(decode(Some(query)).into_iter().collect())
    }

    #[test]
    fn parameters_are_read_and_strange_ones_refused() {
        let mut some = params("limit=5&selector=a%3Db&watch=true");
        assert_eq!(some.page().unwrap(), 5);
        assert!(some.flag("watch").unwrap());
        assert!(some.selector().unwrap().matches(&[("a".into(), "b".into())].into()));
        assert!(some.done().is_ok());
        assert_eq!(params("limt=5").done().unwrap_err().code, Code::UnknownField);
        for bad in ["limit=0", "limit=1001", "limit=x"] {
            assert!(params(bad).page().is_err(), "{bad}");
        }
    }

    #[test]
    fn waits_are_bounded() {
        assert_eq!(params("").wait().unwrap(), None);
        let wait = params("wait=running&timeout=5s").wait().unwrap().unwrap();
        assert_eq!((wait.target.as_str(), wait.limit), ("running", Duration::from_secs(5)));
        for bad in ["timeout=5s", "wait=running&timeout=5", "wait=running&timeout=1d"] {
            assert!(params(bad).wait().is_err(), "{bad}");
        }
    }

    #[test]
    fn etags_are_read() {
        let mut headers = HeaderMap::new();
        assert_eq!(if_match(&headers).unwrap(), None);
        for (text, revision) in [("\"7\"", Some(7)), ("7", Some(7)), ("*", None)] {
            headers.insert(header::IF_MATCH, text.parse().unwrap());
            assert_eq!(if_match(&headers).unwrap(), revision);
        }
        headers.insert(header::IF_MATCH, "x".parse().unwrap());
        assert!(if_match(&headers).is_err());
    }
}
