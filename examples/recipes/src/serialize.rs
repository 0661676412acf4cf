//! A `serde::Serialize` that awaits what it serialises.

use std::cell::Cell;
use std::fmt::Display;

use futures::Stream;
use greenhack::stream::blocking_iter;
use serde::ser::{Error, Serialize, SerializeSeq, Serializer};

/// The rows of a stream, as a sequence. None is kept.
pub struct Rows<S>(Cell<Option<S>>);

impl<S> Rows<S> {
    pub fn new(stream: S) -> Self {
        Rows(Cell::new(Some(stream)))
    }
}

impl<S, T, E> Serialize for Rows<S>
where
    S: Stream<Item = Result<T, E>>,
    T: Serialize,
    E: Display,
{
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        let rows = self.0.take();
        let rows = rows.ok_or_else(|| Z::Error::custom("a stream can be read only once"))?;
        let mut sequence = serializer.serialize_seq(None)?;
        for row in blocking_iter(rows) {
            sequence.serialize_element(&row.map_err(Z::Error::custom)?)?;
        }
        sequence.end()
    }
}
