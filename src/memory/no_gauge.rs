//! What takes the place of `gauge` where the system doesn't tell which pages were touched.

/// There is none.
#[derive(Debug)]
pub(super) enum Gauge {}

impl Gauge {
    /// # Safety
    ///
    /// It is safe here.
    pub(super) unsafe fn new(_attic: usize, _size: usize) -> Option<Gauge> {
        None
    }

    pub(super) fn size(&self) -> usize {
        match *self {}
    }

    pub(super) fn used(&self) -> Option<usize> {
        match *self {}
    }
}
