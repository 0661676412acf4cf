//! How many requests may be served at once: the others wait, or are shed.
//!
//! ```text
//!            is there a place?        is there room to wait?
//!   request ─────────┬─────────── no ────────┬──────────── no ──▶ 503
//!                   yes                     yes
//!                    ▼                       ▼
//!                 served ◀── its turn ──── waits ── too long ───▶ 503
//!                    │
//!                    ▼
//!                 its body ends: its place is free
//! ```
//!
//! # Invariants
//!
//! - L1 Who waits is counted by its [`Turn`], who is served by its permit; both
//!   are dropped with the future or the body that has them.
//! - L2 A place that becomes free goes to who has waited longest, so that
//!   nobody who comes later takes it.
#![forbid(unsafe_code)]

use std::fmt;
use std::future::{Future, ready};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use ::axum::body::{Body, Bytes, HttpBody};
use ::axum::http::{Request, StatusCode};
use ::axum::response::{IntoResponse, Response};
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tower_layer::Layer;
use tower_service::Service;

/// Limits how many requests are served at once, as a layer of an app.
///
/// Those that come when so many are being served wait for their turn, in the
/// order in which they come: without a limit, or as many and as long as you
/// say. The others are answered with 503 (Service Unavailable) at once, which
/// is called shedding. What waits has no handler and no stack yet.
///
/// A request is served until the last of its response is on its way or the
/// client has gone: the run that writes a streaming body counts as well. A
/// websocket counts until it has been upgraded.
///
/// A clone is the same limit. So one value limits all routes and all workers
/// that it is put on together, and another clone tells [metrics](Self::live). How
/// many may wait, and how long, a clone may set for itself, and so for a route.
/// It is for any server of axum, with the hop or without. Routes that must be
/// answered in any case, such as health checks, are added after the layer.
///
/// tower's `ConcurrencyLimitLayer` with `LoadShedLayer` either lets all wait or
/// none, tells no numbers, and counts a response as ended when it begins.
///
/// # Cancel safety
///
/// When a client goes while its request waits, the request loses its turn, and
/// the others move up.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use axum::body::Body;
/// use axum::extract::Request;
/// use axum::http::StatusCode;
/// use axum::{Router, routing::get};
/// use greenhack::axum::RequestLimit;
/// # use tower_service::Service;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
/// let limit = RequestLimit::new(1)
///     .max_waiting(100)
///     .max_wait(Duration::from_millis(50));
/// let app = Router::new()
///     .route("/", get(async || std::future::pending::<()>().await))
///     .layer(limit.clone())
///     .route("/health", get(async || "well"));
/// # async fn ask(app: &Router, path: &str) -> StatusCode {
/// #     let mut app = app.clone().into_service::<Body>();
/// #     let request = Request::builder().uri(path).body(Body::empty()).unwrap();
/// #     app.call(request).await.unwrap().status()
/// # }
///
/// // One that stays.
/// # let busy = app.clone();
/// let busy = tokio::spawn(async move { ask(&busy, "/").await });
/// # tokio::task::yield_now().await;
/// assert_eq!(ask(&app, "/").await, StatusCode::SERVICE_UNAVAILABLE);
/// assert_eq!(ask(&app, "/health").await, StatusCode::OK);
/// assert_eq!((limit.live(), limit.waiting(), limit.shed()), (1, 0, 1));
/// # busy.abort();
/// # });
/// ```
#[derive(Clone)]
pub struct RequestLimit {
    shared: Arc<Shared>,
    max_waiting: usize,
    max_wait: Option<Duration>,
}

struct Shared {
    places: Arc<Semaphore>,
    count: usize,
    waiting: AtomicUsize,
    shed: AtomicU64,
}

impl RequestLimit {
    /// Makes a limit of `count` requests that are served at once; all others
    /// wait.
    ///
    /// # Panics
    ///
    /// If it is 0, or more than [`Semaphore::MAX_PERMITS`].
    #[track_caller]
    pub fn new(count: usize) -> Self {
        assert!(
            count > 0,
            "there must be room for at least one request; write `RequestLimit::new(1)`"
        );
        assert!(
            count <= Semaphore::MAX_PERMITS,
            "this is no limit; leave it out"
        );
        RequestLimit {
            shared: Arc::new(Shared {
                places: Arc::new(Semaphore::new(count)),
                count,
                waiting: AtomicUsize::new(0),
                shed: AtomicU64::new(0),
            }),
            max_waiting: usize::MAX,
            max_wait: None,
        }
    }

    /// Sets how many requests may wait; those that come then are shed. With 0
    /// nothing waits.
    ///
    /// # Examples
    ///
    /// One limit for all, in which some routes are more patient than others:
    ///
    /// ```
    /// use axum::body::Body;
    /// use axum::extract::Request;
    /// use axum::{Router, routing::get};
    /// use greenhack::axum::RequestLimit;
    /// # use tower_service::Service;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
    /// let soup = async || {
    ///     tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    ///     "soup"
    /// };
    /// let limit = RequestLimit::new(1);
    /// let orders = Router::new().route("/order", get(soup)).layer(limit.clone());
    /// let reports = Router::new().route("/report", get(soup)).layer(limit.max_waiting(0));
    /// let app = orders.merge(reports);
    /// # async fn ask(app: Router, path: &str) -> u16 {
    /// #     let mut app = app.into_service::<Body>();
    /// #     let request = Request::builder().uri(path).body(Body::empty()).unwrap();
    /// #     app.call(request).await.unwrap().status().as_u16()
    /// # }
    /// # let ask = |path| ask(app.clone(), path);
    ///
    /// let answers = tokio::join!(biased; ask("/order"), ask("/order"), ask("/report"));
    /// assert_eq!(answers, (200, 200, 503));
    /// # });
    /// ```
    pub fn max_waiting(mut self, count: usize) -> Self {
        self.max_waiting = count;
        self
    }

    /// Sets how long a request may wait before it is shed. The runtime must have
    /// a timer.
    pub fn max_wait(mut self, limit: Duration) -> Self {
        self.max_wait = Some(limit);
        self
    }

    /// Returns how many requests are being served.
    pub fn live(&self) -> usize {
        self.shared.count - self.shared.places.available_permits()
    }

    /// Returns how many requests wait for their turn.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// Returns how many requests have been shed so far.
    pub fn shed(&self) -> u64 {
        self.shared.shed.load(Ordering::Relaxed)
    }

    fn enter(&self) -> Entry {
        // L2: while somebody waits, no place is free.
        if let Ok(place) = self.shared.places.clone().try_acquire_owned() {
            return Entry::Served(place);
        }
        let more = |waiting| (waiting < self.max_waiting).then_some(waiting + 1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        match self.shared.waiting.fetch_update(set, fetch, more) {
            Ok(_) => Entry::Waits(Turn {
                shared: self.shared.clone(),
                max_wait: self.max_wait,
            }),
            Err(_) => {
                self.shared.count_shed();
                Entry::Shed
            }
        }
    }
}

impl Shared {
    fn count_shed(&self) {
        self.shed.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for RequestLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestLimit")
            .field("count", &self.shared.count)
            .field("max_waiting", &self.max_waiting)
            .field("max_wait", &self.max_wait)
            .field("live", &self.live())
            .field("waiting", &self.waiting())
            .field("shed", &self.shed())
            .finish()
    }
}

/// What becomes of a request that comes.
enum Entry {
    Served(OwnedSemaphorePermit),
    Waits(Turn),
    Shed,
}

/// Counts one who waits, until it is dropped.
struct Turn {
    shared: Arc<Shared>,
    max_wait: Option<Duration>,
}

impl Turn {
    /// Waits for a place, or until it has been too long.
    async fn come(self) -> Option<OwnedSemaphorePermit> {
        let place = self.shared.places.clone().acquire_owned();
        let place = match self.max_wait {
            Some(limit) => timeout(limit, place).await,
            None => Ok(place.await),
        };
        if place.is_err() {
            self.shared.count_shed();
        }
        // It is never closed.
        place.ok().and_then(Result::ok)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S> Layer<S> for RequestLimit {
    type Service = LimitedRequests<S>;

    fn layer(&self, inner: S) -> LimitedRequests<S> {
        LimitedRequests {
            limit: self.clone(),
            inner,
        }
    }
}

/// A service behind a [`RequestLimit`], which is its `Layer`.
///
/// # Examples
///
/// See [`RequestLimit`].
#[derive(Clone, Debug)]
pub struct LimitedRequests<S> {
    limit: RequestLimit,
    inner: S,
}

impl<S, B> Service<Request<B>> for LimitedRequests<S>
where
    S: Service<Request<B>, Response = Response> + Clone + Send + 'static,
    S::Error: Send,
    S::Future: Send + 'static,
    B: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.limit.enter() {
            Entry::Served(place) => {
                let response = self.inner.call(request);
                Box::pin(async move { Ok(keep(place, response.await?)) })
            }
            Entry::Waits(turn) => {
                // The one that is ready is called; the clone may not be.
                let clone = self.inner.clone();
                let mut inner = mem::replace(&mut self.inner, clone);
                Box::pin(async move {
                    match turn.come().await {
                        Some(place) => Ok(keep(place, inner.call(request).await?)),
                        None => Ok(refusal()),
                    }
                })
            }
            Entry::Shed => Box::pin(ready(Ok(refusal()))),
        }
    }
}

fn refusal() -> Response {
    StatusCode::SERVICE_UNAVAILABLE.into_response()
}

/// Lets a response keep its place until its body has ended.
fn keep(place: OwnedSemaphorePermit, response: Response) -> Response {
    match response.body().is_end_stream() {
        true => response,
        false => response.map(|body| {
            Body::new(Placed {
                body,
                _place: place,
            })
        }),
    }
}

/// A body that has a place.
struct Placed {
    // Dropped, with the run that writes it, before its place is given away.
    body: Body,
    _place: OwnedSemaphorePermit,
}

impl HttpBody for Placed {
    type Data = Bytes;
    type Error = ::axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ::axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
