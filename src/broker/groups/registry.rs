//! The groups of one kind that have members here, by name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::lock;
use crate::broker::Error;
use crate::coordination::membership::FenceReason;

/// A group that has members, as this broker coordinates it in one term.
pub(super) trait Coordinated {
    /// The term in which this broker coordinates the group.
    fn term(&self) -> u32;

    /// Whether nobody can join any more: whoever wants to needs a new one.
    fn is_over(&self) -> bool;

    /// Ends every session: somebody else coordinates the group now, or this broker in another term.
    fn dissolve(&self, reason: FenceReason);
}

/// See the module.
pub(super) struct Registry<G>(Mutex<HashMap<Arc<str>, Arc<G>>>);

impl<G> Default for Registry<G> {
    fn default() -> Self {
        Registry(Mutex::default())
    }
}

impl<G: Coordinated> Registry<G> {
    /// The group, unless it is over.
    pub(super) fn get(&self, name: &str) -> Option<Arc<G>> {
        lock(&self.0).get(name).filter(|group| !group.is_over()).cloned()
    }

    /// The group in the term that `term` tells, made if there is none. The members of one of an older term are told that
    /// they are none any more.
    ///
    /// `term` is asked under the lock, so that nobody puts an older term in the place of a newer one. `make` is given the
    /// one that was there.
    pub(super) fn get_or_make(
        &self,
        name: &str,
        term: impl FnOnce() -> Result<u32, Error>,
        make: impl FnOnce(Arc<str>, u32, Option<&G>) -> G,
    ) -> Result<Arc<G>, Error> {
        let mut groups = lock(&self.0);
        let term = term()?;
        let present = groups.get(name);
        if let Some(present) = present.filter(|group| !group.is_over() && group.term() == term) {
            return Ok(present.clone());
        }
        let name: Arc<str> = name.into();
        let made = Arc::new(make(name.clone(), term, present.map(|group| &**group)));
        let replaced = groups.insert(name, made.clone());
        drop(groups);
        if let Some(replaced) = replaced {
            replaced.dissolve(FenceReason::CoordinatorChanged);
        }
        Ok(made)
    }

    /// All that are not over.
    pub(super) fn all(&self) -> Vec<Arc<G>> {
        lock(&self.0).values().filter(|group| !group.is_over()).cloned().collect()
    }

    /// Forgets those that are over. `note` is called with each before a successor can be made.
    pub(super) fn forget_over(&self, mut note: impl FnMut(Arc<str>, &G)) {
        for (name, group) in lock(&self.0).extract_if(|_, group| group.is_over()) {
            note(name, &group);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Fake {
        term: u32,
        over: AtomicBool,
    }

    impl Fake {
        fn new(term: u32) -> Self {
            Fake { term, over: AtomicBool::new(false) }
        }
    }

    impl Coordinated for Fake {
        fn term(&self) -> u32 {
            self.term
        }

        fn is_over(&self) -> bool {
            self.over.load(Ordering::Relaxed)
        }

        fn dissolve(&self, reason: FenceReason) {
            assert_eq!(reason, FenceReason::CoordinatorChanged);
            self.over.store(true, Ordering::Relaxed);
        }
    }

    fn in_term(registry: &Registry<Fake>, term: u32) -> Arc<Fake> {
        let made = registry.get_or_make("billing", || Ok(term), |_, term, _| Fake::new(term));
        made.expect("the broker leads")
    }

    #[test]
    fn a_group_of_an_older_term_is_dissolved_by_the_first_who_joins_in_a_newer_one() {
        let registry = Registry::default();
        let old = in_term(&registry, 3);
        assert!(Arc::ptr_eq(&old, &in_term(&registry, 3)));
        let new = in_term(&registry, 4);
        assert!(old.is_over());
        assert!(!new.is_over());
        assert!(Arc::ptr_eq(&new, &registry.get("billing").expect("the newer one")));
    }

    #[test]
    fn whoever_does_not_lead_changes_nothing() {
        let registry = Registry::default();
        let old = in_term(&registry, 3);
        let refused = registry.get_or_make(
            "billing",
            || Err(Error::NotReady("electing")),
            |_, term, _| Fake::new(term),
        );
        assert!(matches!(refused, Err(Error::NotReady(_))));
        assert!(!old.is_over());
    }

    #[test]
    fn one_that_is_over_is_given_to_nobody_but_its_successor() {
        let registry = Registry::default();
        in_term(&registry, 3).dissolve(FenceReason::CoordinatorChanged);
        assert!(registry.get("billing").is_none());
        assert!(registry.all().is_empty());
        let mut before = None;
        let made = registry.get_or_make(
            "billing",
            || Ok(3),
            |_, term, over| {
                before = over.map(|over| over.term);
                Fake::new(term)
            },
        );
        assert_eq!((before, made.expect("the broker leads").is_over()), (Some(3), false));
        registry.forget_over(|name, _| panic!("{name} is not over"));
    }
}
