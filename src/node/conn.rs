//! A pooled connection: the driver's client, and what is known about it.

use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{sleep, timeout};
use tokio_postgres::Connection;
use tokio_util::task::TaskTracker;

use super::dial::Dialed;
use super::member::FenceLine;
use super::wire::{Wire, WireState};
use crate::error::with_causes;
use crate::topology::Suspicion;

/// How long a connection that is being closed may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// A connection of a member's pool. Derefs to [`ClientWrapper`], the client of `deadpool-postgres`, and
/// through it to [`tokio_postgres::Client`].
///
/// Boxed: a checkout moves it through several hands.
pub struct Conn(Box<Inner>);

struct Inner {
    client: ClientWrapper,
    wire: Arc<WireState>,
    /// The reign under which it was last verified as the primary's; 0 for never.
    verified_reign: u64,
    line: Arc<FenceLine>,
    driver: Option<JoinHandle<()>>,
    timer: AbortHandle,
    tasks: TaskTracker,
    runtime: Handle,
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn")
            .field("wire", &self.0.wire)
            .field("verified_reign", &self.0.verified_reign)
            .finish_non_exhaustive()
    }
}

impl Conn {
    /// Starts to drive `dialed` on `tasks`. When `line` falls it ends at once, with work in flight failing.
    pub(super) fn start(
        dialed: Dialed,
        wire: Arc<WireState>,
        (tasks, runtime): (&TaskTracker, &Handle),
        line: Arc<FenceLine>,
        lifetime: Duration,
    ) -> Self {
        // On the pool's own runtime: the caller's may end before the connection does.
        let driver = tasks.spawn_on(Driver::new(dialed.connection, Arc::clone(&wire)), runtime);
        line.stand_behind(&wire, driver.abort_handle());
        let aging = Arc::clone(&wire);
        // A task of its own: the driver is woken for each message, and would look at the clock each time.
        let timer = async move {
            sleep(lifetime).await;
            aging.expire();
        };
        let timer = tasks.spawn_on(timer, runtime);
        Self(Box::new(Inner {
            // The wrapper aborts the task it is given when it is dropped, before the driver could say
            // goodbye to the server; so it gets one that has nothing to do.
            client: ClientWrapper::new(dialed.client, runtime.spawn(async {})),
            wire,
            verified_reign: 0,
            line,
            driver: Some(driver),
            timer: timer.abort_handle(),
            tasks: tasks.clone(),
            runtime: runtime.clone(),
        }))
    }

    /// The reign under which it was last verified as the primary's; 0 for never.
    pub(crate) fn verified_reign(&self) -> u64 {
        self.0.verified_reign
    }

    pub(crate) fn verified_in(&mut self, reign: u64) {
        self.0.verified_reign = reign;
    }

    pub(crate) fn wire(&self) -> &Arc<WireState> {
        &self.0.wire
    }

    /// Whether the pool itself ended it, as its node was demoted.
    pub(crate) fn was_cut(&self) -> bool {
        self.0.line.has_fallen()
    }

    /// Whether it was cut, is over age, or the server is gone.
    pub(crate) fn is_dead(&self) -> bool {
        self.0.line.has_fallen() || self.0.wire.has_expired() || self.0.client.is_closed()
    }

    /// Why the connection ended, where that is known: the driver's own errors do not tell.
    #[must_use]
    pub fn end_cause(&self) -> Option<String> {
        self.0.wire.cause()
    }
}

impl Deref for Conn {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        &self.0.client
    }
}

impl DerefMut for Conn {
    fn deref_mut(&mut self) -> &mut ClientWrapper {
        &mut self.0.client
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.wire.close();
        self.timer.abort();
        if let Some(mut driver) = self.driver.take()
            && !driver.is_finished()
        {
            // It says goodbye once the client is gone, which is when this returns.
            let goodbye = async move {
                if timeout(GOODBYE, &mut driver).await.is_err() {
                    driver.abort();
                }
            };
            self.tasks.spawn_on(goodbye, &self.runtime);
        }
    }
}

/// Wakes the driver, and leaves a mark that it was woken.
struct Marking {
    driver: Waker,
    wire: Arc<WireState>,
}

impl Wake for Marking {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wire.woken();
        self.driver.wake_by_ref();
    }
}

/// Moves messages until the connection ends, and remembers why it did.
///
/// The driver's own future, polled with a waker that leaves marks: a request that it has not taken up yet is on
/// no wire.
struct Driver {
    connection: Connection<Wire, Wire>,
    wire: Arc<WireState>,
    /// The task's waker, and the marking one made of it.
    wakers: Option<(Waker, Waker)>,
}

impl Driver {
    fn new(connection: Connection<Wire, Wire>, wire: Arc<WireState>) -> Self {
        Self { connection, wire, wakers: None }
    }

    fn ended(&self, result: Result<(), tokio_postgres::Error>) {
        if let Err(error) = result {
            self.wire.set_cause(|| with_causes(&error));
        }
        if !self.wire.is_closing() {
            self.wire.set_cause(|| "the server closed the connection".into());
            self.wire.suspect(Suspicion::ConnectionLost);
        }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let marking = match &mut this.wakers {
            Some((known, marking)) if known.will_wake(cx.waker()) => &*marking,
            slot => {
                let driver = cx.waker().clone();
                let marking = Marking { driver: driver.clone(), wire: Arc::clone(&this.wire) };
                &slot.insert((driver, Waker::from(Arc::new(marking)))).1
            }
        };
        this.wire.moves();
        let result = Pin::new(&mut this.connection).poll(&mut Context::from_waker(marking));
        this.wire.moved();
        result.map(|result| this.ended(result))
    }
}
