//! What openraft runs on in test builds: tokio, with the chance taken out.
//!
//! Two things about tokio's own differ from run to run, even on one thread with paused time: the random numbers that
//! spread elections, and the order in which several who wait for one `watch` are woken. Here the first come from a seed,
//! if the thread has one, and the second is the order in which they began to wait.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::OptionalSend;
use openraft::async_runtime::{
    AsyncRuntime, RecvError, Watch as WatchChannel, WatchReceiver, WatchSender, watch::SendError,
};
use openraft::impls::TokioRuntime;
use openraft::rt::OptionalSync;
use tokio::sync::{Notify, watch};

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Has every replica of this thread draw its random numbers from `seed`.
pub(crate) fn seed_thread(seed: u64) {
    SEED.set(Some(seed));
}

/// tokio's runtime without chance.
#[derive(Debug)]
pub struct Runtime(TokioRuntime);

/// Random numbers of this thread.
pub struct Chance;

impl Chance {
    fn next() -> u64 {
        let Some(seed) = SEED.get() else { return rand::random() };
        // SplitMix64.
        let seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        SEED.set(Some(seed));
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl rand_core::TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((Self::next() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(Self::next())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&Self::next().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = Chance;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> Chance {
        Chance
    }

    fn new(threads: usize) -> Self {
        Runtime(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

/// tokio's `watch`, whose waiters are woken in the order in which they came.
pub struct Watch;

/// Sends values. Clones send to the same receivers.
pub struct Sender<T>(Arc<Sending<T>>);

struct Sending<T> {
    /// Gone only while this is dropped.
    values: Option<watch::Sender<T>>,
    bell: Arc<Notify>,
}

/// Receives values.
pub struct Receiver<T> {
    values: watch::Receiver<T>,
    bell: Arc<Notify>,
}

impl<T> Sender<T> {
    fn values(&self) -> &watch::Sender<T> {
        self.0.values.as_ref().expect("the values are there until the last sender is dropped")
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender(Arc::clone(&self.0))
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Receiver { values: self.values.clone(), bell: Arc::clone(&self.bell) }
    }
}

impl<T> Drop for Sending<T> {
    fn drop(&mut self) {
        drop(self.values.take());
        self.bell.notify_waiters();
    }
}

impl WatchChannel for Watch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = watch::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        let (sender, values) = watch::channel(init);
        let bell = Arc::new(Notify::new());
        let sending = Sending { values: Some(sender), bell: Arc::clone(&bell) };
        (Sender(Arc::new(sending)), Receiver { values, bell })
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<Watch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        let sent = self.values().send(value);
        self.0.bell.notify_waiters();
        sent.map_err(|error| SendError(error.0))
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        let modified = self.values().send_if_modified(modify);
        if modified {
            self.0.bell.notify_waiters();
        }
        modified
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.values().borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        Receiver { values: self.values().subscribe(), bell: Arc::clone(&self.0.bell) }
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<Watch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        loop {
            // Made before the look, so that nothing is missed in between.
            let bell = self.bell.notified();
            let unseen = self.values.borrow().has_changed();
            if unseen {
                self.values.mark_unchanged();
                return Ok(());
            }
            if self.values.has_changed().is_err() {
                return Err(RecvError(()));
            }
            bell.await;
        }
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.values.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.values.borrow_and_update()
    }
}
