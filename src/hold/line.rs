//! A place before the gate for one who is asked "may you go?" rather than waits: a service, whose call comes
//! only once it has said that it is ready for it.

use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::Notify;

use super::queue::{HoldQueue, Id};
use super::{Gate, HoldError, Permit};

/// At most one place before the gate, taken when it is needed and kept until the call or the drop.
///
/// The gate holds one waker for it, the last one that it was polled with. Dropped, it leaves the queue.
pub(crate) struct Line<G: Deref<Target = Gate>> {
    gate: G,
    place: Place<G>,
}

enum Place<G: Deref<Target = Gate>> {
    None,
    Waiting(LetGo<G>),
    /// Let go by the ramp, and not gone yet. Where it dawdles, the ramp goes on without it.
    LetGo(Permit<G>),
}

/// `Sync`, since services are shared that way while nobody polls them.
type LetGo<G> = Pin<Box<dyn Future<Output = Result<Permit<G>, HoldError>> + Send + Sync>>;

impl<G> Line<G>
where
    G: Deref<Target = Gate> + Clone + Send + Sync + 'static,
{
    pub(crate) fn new(gate: G) -> Self {
        Self { gate, place: Place::None }
    }

    /// Ready when a call would go on to the leader now. Pending keeps a place in the queue, and the task is
    /// woken when it is let go or the gate is shut for good.
    ///
    /// Where even the room behind the queue is full it is ready too: not a word of the truth, but the call is
    /// refused at once then, and a waker that is not kept would be a worse lie.
    ///
    /// # Errors
    /// [`HoldError::Closed`], of the gate.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), HoldError>> {
        loop {
            match &mut self.place {
                Place::None if self.gate.is_open() => return Poll::Ready(Ok(())),
                Place::None => match self.gate.enter(HoldQueue::line_up) {
                    Ok(Some((id, wake))) => {
                        let permit = Permit { gate: self.gate.clone(), id: Some(id) };
                        self.place = Place::Waiting(Box::pin(let_go(permit, id, wake)));
                    }
                    Ok(None) | Err(HoldError::TooMany { .. }) => return Poll::Ready(Ok(())),
                    Err(error) => return Poll::Ready(Err(error)),
                },
                Place::Waiting(waiting) => {
                    let result = ready!(waiting.as_mut().poll(cx));
                    self.place = match result {
                        Ok(permit) => Place::LetGo(permit),
                        Err(error) => {
                            self.place = Place::None;
                            return Poll::Ready(Err(error));
                        }
                    };
                }
                Place::LetGo(_) if self.gate.is_letting_go() => return Poll::Ready(Ok(())),
                // The leader was lost again before it went.
                Place::LetGo(_) => self.place = Place::None,
            }
        }
    }

    /// What the call goes with: its permission, where it had to wait for one. Gives the place up otherwise.
    pub(crate) fn take(&mut self) -> Option<Permit<G>> {
        match std::mem::replace(&mut self.place, Place::None) {
            Place::LetGo(permit) => Some(permit),
            Place::None | Place::Waiting(_) => None,
        }
    }
}

/// A place is one's own.
impl<G> Clone for Line<G>
where
    G: Deref<Target = Gate> + Clone,
{
    fn clone(&self) -> Self {
        Self { gate: self.gate.clone(), place: Place::None }
    }
}

async fn let_go<G>(permit: Permit<G>, id: Id, wake: Arc<Notify>) -> Result<Permit<G>, HoldError>
where
    G: Deref<Target = Gate>,
{
    wake.notified().await;
    if permit.gate.was_let_go(id) { Ok(permit) } else { Err(HoldError::Closed) }
}
