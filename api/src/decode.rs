//! Reading what users send: strict, and telling exactly where the fault is.

use crate::error::{Code, Problem};
use crate::quantity;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Decodes a request's body. Unknown fields are refused with their path; syntax errors tell line and column.
///
/// `T` must be a concrete type: a tagged enum or `flatten` would hide unknown fields from the check.
pub fn strict<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = strict_from(&mut json)?;
    json.end().map_err(malformed)?;
    Ok(value)
}

/// [`strict`] for JSON that is already parsed.
pub fn strict_value<T: DeserializeOwned>(value: Value) -> Result<T, Problem> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let decoder = serde_path_to_error::Deserializer::new(value, &mut track);
    let decoded = serde_ignored::deserialize(decoder, |path| unknown.push(readable(&path)));
    finish(decoded, unknown, &track.path().to_string())
}

fn strict_from<'de, T: DeserializeOwned, R: serde_json::de::Read<'de>>(
    json: &mut serde_json::Deserializer<R>,
) -> Result<T, Problem> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let decoder = serde_path_to_error::Deserializer::new(json, &mut track);
    let decoded = serde_ignored::deserialize(decoder, |path| unknown.push(readable(&path)));
    finish(decoded, unknown, &track.path().to_string())
}

fn finish<T>(decoded: Result<T, serde_json::Error>, unknown: Vec<String>, path: &str) -> Result<T, Problem> {
    let value = decoded.map_err(|error| match error.classify() {
        serde_json::error::Category::Data => fault(&error, path),
        _ => malformed(error),
    })?;
    if let Some(first) = unknown.first() {
        let more =
            if unknown.len() > 1 { format!(" (and {} more)", unknown.len() - 1) } else { String::new() };
        return Err(
            Problem::new(Code::UnknownField, format!("there is no field `{first}`{more}")).field(first)
        );
    }
    Ok(value)
}

/// `serde_ignored` marks the steps through options and newtypes with `?`; users do not know these.
fn readable(path: &serde_ignored::Path<'_>) -> String {
    path.to_string().split('.').filter(|part| *part != "?").collect::<Vec<_>>().join(".")
}

fn malformed(error: serde_json::Error) -> Problem {
    Problem::new(Code::MalformedBody, format!("the body is not JSON: {error}"))
}

fn fault(error: &serde_json::Error, path: &str) -> Problem {
    let text = error.to_string();
    // serde_json adds a position, which means nothing where the path is told.
    let text = text.split(" at line ").next().unwrap_or(&text);
    let code = if text.contains(quantity::INVALID) { Code::InvalidQuantity } else { Code::InvalidField };
    let problem = Problem::new(code, text);
    // A missing field is told at its parent's path.
    let missing = text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    match (path, missing) {
        (".", None) => problem,
        (".", Some(name)) => problem.field(name),
        (path, Some(name)) => problem.field(format!("{path}.{name}")),
        (path, None) => problem.field(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::InstanceSpec;
    use crate::object::Draft;

    fn draft(text: &str) -> Result<Draft<InstanceSpec>, Problem> {
        strict(text.as_bytes())
    }

    #[test]
    fn faults_tell_where() {
        for (text, code, field) in [
            ("{", Code::MalformedBody, None),
            ("[]", Code::InvalidField, None),
            (r#"{"spec":{}}"#, Code::InvalidField, Some("spec.image")),
            (r#"{"spec":{"image":"a"},"x":1}"#, Code::UnknownField, Some("x")),
            (r#"{"spec":{"image":"a","cpu":1}}"#, Code::UnknownField, Some("spec.cpu")),
            (
                r#"{"spec":{"image":"a","nics":{"eth0":{"net":"b"}}}}"#,
                Code::UnknownField,
                Some("spec.nics.eth0.net"),
            ),
            (
                r#"{"spec":{"image":"a","env":{"A":{"secret":"s","key":"k","x":1}}}}"#,
                Code::UnknownField,
                Some("spec.env.A.x"),
            ),
            (r#"{"spec":{"image":"a","memory":"1Gx"}}"#, Code::InvalidQuantity, Some("spec.memory")),
            (r#"{"spec":{"image":"a","cpus":-1}}"#, Code::InvalidQuantity, Some("spec.cpus")),
            (r#"{"spec":{"image":1}}"#, Code::InvalidField, Some("spec.image")),
            (r#"{"spec":{"image":"a"}} x"#, Code::MalformedBody, None),
        ] {
            let problem = draft(text).unwrap_err();
            assert_eq!((problem.code, problem.field.as_deref()), (code, field), "{text}: {problem}");
        }
        assert!(draft(r#"{"name":"a","uid":"x","status":{"phase":"?"},"spec":{"image":"a"}}"#).is_ok());
    }
}
