//! Log lines, to standard error. They leave through a thread of their own: a terminal that does not read
//! must not stop a core. Lines that find its queue full are dropped.

use std::fmt::{self, Write as _};

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    field::MakeExt as _,
    filter::Targets,
    fmt::format::{Writer, debug_fn},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::{Access, Format, Level, Options};

/// The target of access lines.
pub const ACCESS: &str = "access";

/// Lines that may wait for the terminal.
const QUEUE: usize = 16_384;

/// Keep it until the end: dropping it writes what is left.
#[must_use]
pub struct Log(#[expect(dead_code, reason = "held for its drop")] WorkerGuard);

pub fn start(options: &Options) -> Log {
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUE)
        .lossy(true)
        .thread_name("log")
        .finish(std::io::stderr());
    let level = match options.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
    };
    let access = match options.access {
        Access::On => level,
        Access::Off => LevelFilter::OFF,
    };
    let filter = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("tidegate", level)
        .with_target(ACCESS, access);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    match options.format {
        Format::Text => {
            let fields = debug_fn(|writer: &mut Writer<'_>, field, value| {
                let text = OneLine(format!("{value:?}"));
                match field.name() {
                    "message" => write!(writer, "{text}"),
                    name => write!(writer, "{name}={text}"),
                }
            });
            registry
                .with(lines.with_target(false).fmt_fields(fields.delimited(" ")))
                .init();
        }
        Format::Json => registry.with(lines.json().flatten_event(true)).init(),
    }
    Log(guard)
}

/// Values come from clients and registries, who would like to write lines of their own, or to a terminal.
pub struct OneLine(pub String);

impl fmt::Display for OneLine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                c if c.is_control() => write!(formatter, "{}", c.escape_default())?,
                c => formatter.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_writes_a_line_of_its_own() {
        for (value, line) in [
            ("plain text, ünïcode", "plain text, ünïcode"),
            ("a\nINFO b", "a\\nINFO b"),
            ("\x1b[31mred\x07", "\\u{1b}[31mred\\u{7}"),
        ] {
            assert_eq!(OneLine(value.to_owned()).to_string(), line);
        }
    }
}
