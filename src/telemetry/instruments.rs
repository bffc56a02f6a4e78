//! What instrument groups are built from: counters that are plain atomics, distributions, and levels that are read
//! when somebody collects.
//!
//! A counter costs one atomic addition, however many readers there are, because the SDK reads it at collection.
//! Distributions are [`super::histograms`].

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider as _, NoopMeterProvider};

use super::catalog::{Kind, Row};
use super::exemplars::{Exemplars, Store};
use super::histograms::{Histograms, Series};
use super::traceparent::TraceIds;

/// Locks `mutex`, also after a panic elsewhere: all data behind these locks is valid at every step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number that only grows. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Count(Arc<Padded>);

/// Alone on its cache line, so that counting on one core does not slow another counter on another core.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Padded(AtomicU64);

impl Count {
    pub(super) fn add(&self, amount: u64) {
        self.0.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.0.load(Ordering::Relaxed)
    }
}

/// A closed set of label values.
pub(super) trait Label: Copy + 'static {
    /// How many values there are.
    const COUNT: usize;
    /// All values, in the order of their indices.
    fn all() -> Vec<Self>;
    /// The position in [`Label::all`].
    fn index(self) -> usize;
    /// The attributes of the value.
    fn attributes(self) -> Vec<KeyValue>;
}

impl<A: Label, B: Label> Label for (A, B) {
    const COUNT: usize = A::COUNT * B::COUNT;

    fn all() -> Vec<Self> {
        A::all().into_iter().flat_map(|a| B::all().into_iter().map(move |b| (a, b))).collect()
    }

    fn index(self) -> usize {
        self.0.index() * B::COUNT + self.1.index()
    }

    fn attributes(self) -> Vec<KeyValue> {
        let mut attributes = self.0.attributes();
        attributes.extend(self.1.attributes());
        attributes.sort_by(|a, b| a.key.cmp(&b.key));
        attributes
    }
}

/// Declares a closed enum of label values.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $key:literal { $($(#[$value_doc:meta])* $value:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$value_doc])* $value,)* }

        impl $name {
            /// The label's value on `/metrics`.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$value => $text,)* }
            }
        }

        impl $crate::telemetry::instruments::Label for $name {
            const COUNT: usize = [$($name::$value,)*].len();

            fn all() -> Vec<Self> {
                vec![$($name::$value,)*]
            }

            fn index(self) -> usize {
                self as usize
            }

            fn attributes(self) -> Vec<opentelemetry::KeyValue> {
                vec![opentelemetry::KeyValue::new($key, self.as_str())]
            }
        }
    };
}
pub(super) use label;

/// One counter per value of a closed label. Every series exists from the start, at zero, so that rates are right.
#[derive(Debug)]
pub(super) struct Counts<L> {
    counts: Arc<[Count]>,
    label: std::marker::PhantomData<fn(L)>,
}

impl<L: Label> Counts<L> {
    pub(super) fn add(&self, label: L, amount: u64) {
        self.counts[label.index()].add(amount);
    }

    pub(super) fn get(&self, label: L) -> u64 {
        self.counts[label.index()].get()
    }
}

/// One counter per static name, for labels whose set is closed elsewhere (error codes). For paths that are not hot.
#[derive(Debug)]
pub(super) struct NamedCounts(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl NamedCounts {
    pub(super) fn add(&self, name: &'static str, amount: u64) {
        *lock(&self.0).entry(name).or_default() += amount;
    }
}

/// A distribution with fixed labels.
#[derive(Debug)]
pub(super) struct Distribution(Option<Recorded>);

/// Where the values of a [`Distribution`] go. There is none while metrics are off.
#[derive(Debug)]
struct Recorded {
    series: Arc<Series>,
    exemplars: Arc<Exemplars>,
}

impl Distribution {
    /// Records `value`. If the current request is sampled, `ids` names it and an exemplar is kept.
    pub(super) fn record(&self, value: f64, ids: Option<TraceIds>) {
        let Distribution(Some(recorded)) = self else {
            return;
        };
        recorded.series.record(value);
        if let Some(ids) = ids {
            recorded.exemplars.keep(value, ids);
        }
    }

    pub(super) fn record_duration(&self, duration: Duration, ids: Option<TraceIds>) {
        self.record(duration.as_secs_f64(), ids);
    }
}

/// Serialises collections, so that levels are read once in each and series of removed topics do not come back.
#[derive(Debug, Default)]
pub(super) struct Collection {
    /// Every reader adds them to what the SDK collected.
    pub(super) histograms: Histograms,
    running: Mutex<()>,
    epoch: AtomicU64,
    /// How many labelled objects have been removed so far.
    removals: AtomicU64,
}

impl Collection {
    /// Says that a labelled object is gone.
    pub(super) fn removed(&self) {
        self.removals.fetch_add(1, Ordering::AcqRel);
    }

    /// Runs `collect` as one collection of the reader that remembers `seen`.
    ///
    /// A collection by one reader runs all observers and leaves what they said with the other readers too. After a
    /// removal the other readers would therefore still report the removed series once; running `collect` twice lets
    /// the first run clear them away.
    pub(super) fn run<T>(&self, seen: &AtomicU64, mut collect: impl FnMut() -> T) -> T {
        let _running = lock(&self.running);
        let removals = self.removals.load(Ordering::Acquire);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let first = collect();
        // An observer may be the one who notices that something is gone.
        let noticed = self.removals.load(Ordering::Acquire);
        let missed = seen.swap(noticed, Ordering::AcqRel) != removals || noticed != removals;
        if missed { collect() } else { first }
    }
}

/// Reads the levels of one owner, or gives none if that is gone. Must only read atomics or hold short locks: it runs
/// on the collecting thread.
pub type Observer<T> = Arc<dyn Fn() -> Option<T> + Send + Sync>;

/// A place for an [`Observer`], registered after the instruments were created. Clones share it.
pub(super) struct Slot<T>(Arc<SlotInner<T>>);

struct SlotInner<T> {
    collection: Arc<Collection>,
    observer: RwLock<Option<Observer<T>>>,
    /// The levels of the current collection: several rows read the same struct.
    cached: Mutex<(u64, Option<Arc<T>>)>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Slot(self.0.clone())
    }
}

impl<T> std::fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

impl<T: Send + Sync + 'static> Slot<T> {
    /// Replaces the observer.
    pub(super) fn set(&self, observer: Observer<T>) {
        *self.0.observer.write().unwrap_or_else(PoisonError::into_inner) = Some(observer);
    }

    /// The levels now, or none while nobody has registered.
    fn read(&self) -> Option<Arc<T>> {
        let epoch = self.0.collection.epoch.load(Ordering::Acquire);
        {
            let mut cached = lock(&self.0.cached);
            if epoch != 0 && cached.0 == epoch {
                return cached.1.clone();
            }
            // Forgotten before the observer runs: if it panics, it is asked once per collection and not once per row.
            *cached = (epoch, None);
        }
        let observer = self.0.observer.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let levels = Arc::new(observer()?);
        lock(&self.0.cached).1 = Some(levels.clone());
        Some(levels)
    }
}

/// Receives the samples of one row.
pub(super) type Sink<'a, N> = dyn FnMut(N, &[KeyValue]) + 'a;

/// Creates instruments from rows.
pub(super) struct Instruments {
    meter: Meter,
    collection: Arc<Collection>,
    /// None while metrics are off: distributions record nothing then. Counters stay what they are, one atomic addition
    /// for each batch.
    exemplars: Option<Arc<Store>>,
    panics: Count,
}

impl Instruments {
    pub(super) fn new(meter: Meter, collection: Arc<Collection>, exemplars: Arc<Store>) -> Self {
        Instruments { meter, collection, exemplars: Some(exemplars), panics: Count::default() }
    }

    /// Instruments that nobody reads.
    pub(super) fn off() -> Self {
        let meter = NoopMeterProvider::new().meter("streambus");
        Instruments { meter, collection: Arc::default(), exemplars: None, panics: Count::default() }
    }

    /// Counts the panics caught in observers.
    pub(super) fn panics(&self) -> Count {
        self.panics.clone()
    }

    pub(super) fn collection(&self) -> Arc<Collection> {
        self.collection.clone()
    }

    pub(super) fn slot<T>(&self) -> Slot<T> {
        Slot(Arc::new(SlotInner {
            collection: self.collection.clone(),
            observer: RwLock::new(None),
            cached: Mutex::new((0, None)),
        }))
    }

    pub(super) fn count(&self, row: Row) -> Count {
        let count = Count::default();
        let read = count.clone();
        self.integers(row, move |sink| sink(read.get(), &[]));
        count
    }

    pub(super) fn counts<L: Label>(&self, row: Row) -> Counts<L> {
        let counts: Arc<[Count]> = L::all().iter().map(|_| Count::default()).collect();
        let series: Vec<_> = L::all().into_iter().map(L::attributes).zip(counts.to_vec()).collect();
        self.integers(row, move |sink| {
            for (attributes, count) in &series {
                sink(count.get(), attributes);
            }
        });
        Counts { counts, label: std::marker::PhantomData }
    }

    pub(super) fn named_counts(&self, row: Row, key: &'static str) -> NamedCounts {
        let counts = Arc::new(Mutex::new(BTreeMap::new()));
        let read = counts.clone();
        self.integers(row, move |sink| {
            for (name, count) in lock(&read).iter() {
                sink(*count, &[KeyValue::new(key, *name)]);
            }
        });
        NamedCounts(counts)
    }

    /// An unlabelled whole number out of the levels in `slot`.
    pub(super) fn level<T: Send + Sync + 'static>(&self, row: Row, slot: &Slot<T>, read: fn(&T) -> u64) {
        self.each(row, slot, move |levels, sink| sink(read(levels), &[]));
    }

    /// Whole numbers out of the levels in `slot`.
    pub(super) fn each<T: Send + Sync + 'static>(
        &self,
        row: Row,
        slot: &Slot<T>,
        read: impl Fn(&T, &mut Sink<'_, u64>) + Send + Sync + 'static,
    ) {
        let slot = slot.clone();
        self.integers(row, move |sink| {
            if let Some(levels) = slot.read() {
                read(&levels, sink);
            }
        });
    }

    /// Fractions (seconds) out of the levels in `slot`.
    pub(super) fn each_f64<T: Send + Sync + 'static>(
        &self,
        row: Row,
        slot: &Slot<T>,
        read: impl Fn(&T, &mut Sink<'_, f64>) + Send + Sync + 'static,
    ) {
        let slot = slot.clone();
        self.floats(row, move |sink| {
            if let Some(levels) = slot.read() {
                read(&levels, sink);
            }
        });
    }

    /// Whole numbers that `read` delivers at collection.
    pub(super) fn integers(&self, row: Row, read: impl Fn(&mut Sink<'_, u64>) + Send + Sync + 'static) {
        let panics = self.panics.clone();
        let guarded = move |sink: &mut Sink<'_, u64>| {
            if catch_unwind(AssertUnwindSafe(|| read(sink))).is_err() {
                panics.add(1);
            }
        };
        match row.kind {
            Kind::Counter => drop(
                self.meter
                    .u64_observable_counter(row.otel)
                    .with_unit(row.unit)
                    .with_description(row.help)
                    .with_callback(move |out| {
                        guarded(&mut |value, attributes| out.observe(value, attributes))
                    })
                    .build(),
            ),
            Kind::Gauge => drop(
                self.meter
                    .u64_observable_gauge(row.otel)
                    .with_unit(row.unit)
                    .with_description(row.help)
                    .with_callback(move |out| {
                        guarded(&mut |value, attributes| out.observe(value, attributes))
                    })
                    .build(),
            ),
            Kind::UpDown => drop(
                self.meter
                    .i64_observable_up_down_counter(row.otel)
                    .with_unit(row.unit)
                    .with_description(row.help)
                    .with_callback(move |out| {
                        guarded(&mut |value, attributes| {
                            out.observe(i64::try_from(value).unwrap_or(i64::MAX), attributes);
                        });
                    })
                    .build(),
            ),
            Kind::Histogram => unreachable!("{} is a histogram and is not observed", row.otel),
        }
    }

    /// Fractions that `read` delivers at collection.
    pub(super) fn floats(&self, row: Row, read: impl Fn(&mut Sink<'_, f64>) + Send + Sync + 'static) {
        let panics = self.panics.clone();
        let guarded = move |sink: &mut Sink<'_, f64>| {
            if catch_unwind(AssertUnwindSafe(|| read(sink))).is_err() {
                panics.add(1);
            }
        };
        match row.kind {
            Kind::Counter => drop(
                self.meter
                    .f64_observable_counter(row.otel)
                    .with_unit(row.unit)
                    .with_description(row.help)
                    .with_callback(move |out| {
                        guarded(&mut |value, attributes| out.observe(value, attributes))
                    })
                    .build(),
            ),
            Kind::Gauge => drop(
                self.meter
                    .f64_observable_gauge(row.otel)
                    .with_unit(row.unit)
                    .with_description(row.help)
                    .with_callback(move |out| {
                        guarded(&mut |value, attributes| out.observe(value, attributes))
                    })
                    .build(),
            ),
            Kind::UpDown | Kind::Histogram => {
                unreachable!("{} is not a fraction read at collection", row.otel)
            }
        }
    }

    /// A histogram whose series come and go: `read` gives those that are there.
    pub(super) fn histogram(&self, row: Row, read: impl Fn(&mut dyn FnMut(&Series)) + Send + Sync + 'static) {
        self.collection.histograms.register(row, read);
    }

    /// A distribution without labels.
    pub(super) fn distribution(&self, row: Row) -> Distribution {
        self.distributions(row).with(Vec::new())
    }

    /// One distribution per value of a closed label.
    pub(super) fn phases<L: Label>(&self, row: Row) -> Vec<Distribution> {
        let family = self.distributions(row);
        L::all().into_iter().map(|label| family.with(label.attributes())).collect()
    }

    /// Distributions that differ in their labels.
    pub(super) fn distributions(&self, row: Row) -> Distributions {
        let series = Arc::<Mutex<Vec<Arc<Series>>>>::default();
        let shown = series.clone();
        self.histogram(row, move |show| lock(&shown).iter().for_each(|series| show(series)));
        Distributions { row, series, store: self.exemplars.clone() }
    }
}

/// Makes distributions of one row.
#[derive(Debug)]
pub(super) struct Distributions {
    row: Row,
    series: Arc<Mutex<Vec<Arc<Series>>>>,
    /// None while metrics are off.
    store: Option<Arc<Store>>,
}

impl Distributions {
    /// Whether anything is recorded.
    pub(super) fn is_on(&self) -> bool {
        self.store.is_some()
    }

    /// The distribution with these labels, which must be sorted by key. Its series exists from now on, at zero.
    pub(super) fn with(&self, attributes: Vec<KeyValue>) -> Distribution {
        let Some(store) = &self.store else { return Distribution(None) };
        let exemplars = store.add(self.row, &attributes);
        let mut known = lock(&self.series);
        let series = known.iter().find(|series| series.attributes() == attributes).cloned();
        let series = series.unwrap_or_else(|| {
            let series = Arc::new(Series::new(self.row, attributes));
            known.push(series.clone());
            series
        });
        Distribution(Some(Recorded { series, exemplars }))
    }
}
