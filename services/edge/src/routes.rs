//! Who owns which partition, as far as this edge has heard. Hints, never the truth: an owner that is not
//! one any more refuses what it is asked, and says who is.

use manyhands_proto::{Epoch, PARTITIONS, PartitionId, v1};

/// The newest route that was heard of for each partition.
pub(crate) struct Routes {
    by_partition: Vec<Option<Route>>,
}

/// Where a partition's owner listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The owner's fencing number; of two routes, the higher is the newer.
    pub epoch: Epoch,
    /// The URL of its `DocumentService`.
    pub address: String,
}

/// Longest address that is believed, in bytes.
const ADDRESS_BYTES_MAX: usize = 256;

impl Routes {
    /// Knows nothing yet.
    #[must_use]
    pub(crate) fn new() -> Routes {
        Routes { by_partition: vec![None; usize::from(PARTITIONS)] }
    }

    /// The owner of a partition, if one is known.
    #[must_use]
    pub(crate) fn of(&self, partition: PartitionId) -> Option<&Route> {
        self.by_partition.get(usize::from(partition.0))?.as_ref()
    }

    /// Takes in what somebody says. A route of a lower epoch than the known one is old news and ignored,
    /// as is one that makes no sense. True if something is different now.
    pub(crate) fn learn(&mut self, heard: &v1::Route) -> bool {
        let Ok(partition) = usize::try_from(heard.partition) else { return false };
        let Some(known) = self.by_partition.get_mut(partition) else { return false };
        if heard.epoch == 0 || heard.address.is_empty() || heard.address.len() > ADDRESS_BYTES_MAX {
            return false;
        }
        let heard = Route { epoch: Epoch(heard.epoch), address: heard.address.clone() };
        if known.as_ref().is_some_and(|known| known.epoch > heard.epoch || *known == heard) {
            return false;
        }
        *known = Some(heard);
        true
    }

    /// Drops a route that has proved wrong, unless a newer one has come since.
    pub(crate) fn forget(&mut self, partition: PartitionId, wrong: &Route) {
        if let Some(known) = self.by_partition.get_mut(usize::from(partition.0))
            && known.as_ref() == Some(wrong)
        {
            *known = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(partition: u32, epoch: u64, address: &str) -> v1::Route {
        v1::Route { partition, epoch, node: String::new(), address: address.to_owned() }
    }

    // enforces: I-8
    #[test]
    fn routes_of_lower_epochs_and_nonsense_are_ignored() {
        let mut routes = Routes::new();
        assert!(routes.learn(&heard(7, 5, "http://a")));
        assert!(!routes.learn(&heard(7, 5, "http://a")), "nothing is different");
        assert!(!routes.learn(&heard(7, 4, "http://old")));
        assert!(routes.learn(&heard(7, 6, "http://b")));
        assert_eq!(routes.of(PartitionId(7)), Some(&Route { epoch: Epoch(6), address: "http://b".into() }));
        for nonsense in [
            heard(271, 9, "http://c"),
            heard(u32::MAX, 9, "http://c"),
            heard(7, 0, "http://c"),
            heard(7, 9, ""),
            heard(7, 9, &"x".repeat(300)),
        ] {
            assert!(!routes.learn(&nonsense));
        }
        assert_eq!(routes.of(PartitionId(7)).unwrap().address, "http://b");
    }

    #[test]
    fn only_the_route_that_proved_wrong_is_forgotten() {
        let mut routes = Routes::new();
        routes.learn(&heard(1, 1, "http://a"));
        let wrong = routes.of(PartitionId(1)).cloned().unwrap();
        routes.learn(&heard(1, 2, "http://b"));
        routes.forget(PartitionId(1), &wrong);
        assert_eq!(routes.of(PartitionId(1)).unwrap().address, "http://b");
        let right = routes.of(PartitionId(1)).cloned().unwrap();
        routes.forget(PartitionId(1), &right);
        assert_eq!(routes.of(PartitionId(1)), None);
    }
}
