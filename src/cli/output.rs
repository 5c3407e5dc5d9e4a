//! Printing to stdout: lines, JSON and YAML. Data goes to stdout, talk to stderr; a reader that left ends the
//! command quietly.

use super::failure::{Failure, coloured};
use serde_json::Value;
use std::io::{self, Write};

/// What `-o` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns for people (the default).
    Table,
    /// More columns.
    Wide,
    /// JSON as the API gives it.
    Json,
    /// The same as YAML.
    Yaml,
    /// KIND/NAME, one a line.
    Name,
}

/// Prints a text as it is.
pub fn text(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()).map_err(Failure::stdout)
}

/// Prints a line.
pub fn line(line: impl std::fmt::Display) -> Result<(), Failure> {
    text(format!("{line}\n"))
}

pub fn json(value: &Value) -> Result<(), Failure> {
    line(format_args!("{value:#}"))
}

pub fn yaml(value: &Value) -> Result<(), Failure> {
    let yaml = serde_yaml::to_string(value)
        .map_err(|error| Failure::failed(format!("this cannot be written as YAML: {error}")))?;
    text(yaml)
}

/// Prints a table that has columns but no lines, as scripts like it.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
    text(render(header, rows, coloured(&io::stdout())))
}

/// The table as text, without spaces at the ends of lines. Phases are coloured after the columns are set, so that
/// the colours' own characters take no room.
pub fn render(header: &[&str], rows: Vec<Vec<String>>, colour: bool) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    for row in rows {
        // A cell is one line, whatever a message holds.
        let cells = row
            .into_iter()
            .map(|cell| if cell.is_empty() { "-".to_owned() } else { cell.replace(['\n', '\r', '\t'], " ") });
        table.add_row(cells.collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let phase_at = header
        .contains(&"PHASE")
        .then(|| table.lines().next().and_then(|first| first.find("PHASE")))
        .flatten();
    let mut text = String::new();
    for line in table.lines() {
        let line = line.trim_end();
        match phase_at {
            Some(at) if colour => text.push_str(&coloured_word(line, at)),
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// Colours the word that begins at character `at`, if it is a phase.
fn coloured_word(line: &str, at: usize) -> String {
    let before: String = line.chars().take(at).collect();
    let rest = &line[before.len()..];
    let word = rest.split([' ', ',']).next().unwrap_or_default();
    let colour = match word {
        "running" | "ready" => 32,
        "pending" | "starting" | "stopping" | "deleting" | "degraded" | "unknown" => 33,
        "failed" | "backoff" | "lost" => 31,
        _ => return line.to_owned(),
    };
    format!("{before}\x1b[{colour}m{word}\x1b[0m{}", &rest[word.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_no_borders_and_no_trailing_spaces() {
        let rows = vec![
            vec!["web1".into(), "running".into(), "".into()],
            vec!["a-longer-name".into(), "failed".into(), "two\nlines".into()],
        ];
        assert_eq!(
            render(&["NAME", "PHASE", "MESSAGE"], rows.clone(), false),
            "NAME            PHASE     MESSAGE\n\
             web1            running   -\n\
             a-longer-name   failed    two lines\n"
        );
        let coloured = render(&["NAME", "PHASE", "MESSAGE"], rows, true);
        assert!(coloured.contains("web1            \x1b[32mrunning\x1b[0m   -\n"), "{coloured:?}");
    }
}
