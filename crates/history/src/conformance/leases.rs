//! Who may write: epochs, leases, members.

use std::time::Duration;

use manyhands_proto::{Epoch, Offset, PartitionId};

use super::{ALL, LONG, Scribe, Subject, claim, held, member, until};
use crate::{AppendError, Member};

const P: PartitionId = PartitionId(23);
/// A lease that ends while a test waits for it.
const SHORT: Duration = Duration::from_millis(150);

/// An owner that slept through the end of its lease cannot append, however late it comes.
// enforces: I-2
pub async fn a_stale_epoch_is_fenced(subject: Subject) {
    let log = &subject.log;
    let mut zombie = Scribe::claim(log, "zombie", P).await;
    zombie.write(0, 2).await;
    log.release(&held(&zombie.lease)).await.unwrap();
    let mut owner = Scribe::claim(log, "owner", P).await;
    assert!(owner.lease.epoch() > zombie.lease.epoch());
    assert_eq!(owner.lease.head(), zombie.head);
    let fenced = AppendError::Fenced { partition: P, ours: zombie.lease.epoch() };
    // The head is still where the zombie left it: only the epoch is not.
    assert_eq!(zombie.append(zombie.draft(0, 1)).await.unwrap_err(), fenced);
    owner.write(5, 1).await;
    assert_eq!(zombie.append(zombie.draft(0, 1)).await.unwrap_err(), fenced);
    // A second claim under another name fences just the same.
    log.release(&held(&owner.lease)).await.unwrap();
    let _third = claim(&**log, "third", P).await;
    assert_eq!(zombie.append(zombie.draft(0, 1)).await.unwrap_err(), fenced);
    let error = owner.append(owner.draft(5, 1)).await.unwrap_err();
    assert_eq!(error, AppendError::Fenced { partition: P, ours: owner.lease.epoch() });
    let stored = log.follow(P, Offset(0), ALL).await.unwrap();
    assert_eq!(stored.len(), 3, "the zombie's two and the owner's one");
}

/// A claim either sees a late append in its head, or the append is fenced. Never neither, never both.
// enforces: I-2
pub async fn a_claim_and_a_late_append_never_both_win(subject: Subject) {
    let other = (subject.again)().await;
    let mut last = claim(&*subject.log, "first", P).await;
    let (mut committed, mut fenced) = (0, 0);
    for round in 0..60_usize {
        let zombie = Scribe::new(subject.log.clone(), last.clone());
        subject.log.release(&held(&last)).await.unwrap();
        // A document of its own in each round, so that only the fence stands in the way.
        let late = zombie.draft(round, 3);
        let append = tokio::spawn({
            let log = subject.log.clone();
            let (lease, head) = (last.clone(), zombie.head);
            async move { log.append(&lease, head, &late).await }
        });
        for _ in 0..round % 6 {
            tokio::task::yield_now().await;
        }
        let owner = claim(&*other, &format!("owner-{round}"), P).await;
        let stored = other.follow(P, last.head(), ALL).await.unwrap().len() as u64;
        match append.await.unwrap() {
            Ok(appended) => {
                assert_eq!((owner.head(), stored), (appended.head(), 3), "round {round}");
                committed += 1;
            }
            Err(AppendError::Fenced { ours, .. }) => {
                assert_eq!((ours, owner.head(), stored), (last.epoch(), last.head(), 0), "round {round}");
                fenced += 1;
            }
            Err(other) => panic!("round {round}: {other}"),
        }
        last = owner;
    }
    assert_eq!(committed + fenced, 60);
    assert_eq!(other.follow(P, Offset(0), ALL).await.unwrap().len(), committed * 3);
}

/// Many nodes that claim everything at once get every partition exactly once.
// enforces: I-2
pub async fn claims_never_overlap(subject: Subject) {
    let all: Vec<PartitionId> = PartitionId::all().collect();
    for epoch in [Epoch(1), Epoch(2)] {
        let mut tasks = Vec::new();
        for n in 0..4 {
            let (log, mut wanted) = ((subject.again)().await, all.clone());
            // Each asks in an order of its own.
            wanted.rotate_left(n * 67);
            if n % 2 == 1 {
                wanted.reverse();
            }
            tasks.push(tokio::spawn(async move {
                let mut leases = Vec::new();
                for some in wanted.chunks(90) {
                    leases.extend(log.claim(&member(&format!("node-{n}")), some, LONG).await.unwrap());
                }
                leases
            }));
        }
        let mut leases = Vec::new();
        for task in tasks {
            leases.extend(task.await.unwrap());
        }
        leases.sort_by_key(crate::Lease::partition);
        assert!(leases.iter().map(crate::Lease::partition).eq(all.iter().copied()), "each exactly once");
        assert!(leases.iter().all(|lease| lease.epoch() == epoch), "and under the next epoch");
        let ownership = subject.log.ownership().await.unwrap();
        assert!(ownership.iter().map(|row| row.partition).eq(all.iter().copied()));
        assert!(ownership.iter().all(|row| row.owner.is_some() && row.epoch == epoch));
        assert!(subject.log.claim(&member("late"), &all, LONG).await.unwrap().is_empty());
        let held: Vec<_> = leases.iter().map(|lease| (lease.partition(), lease.epoch())).collect();
        subject.log.release(&held).await.unwrap();
        assert!(subject.log.ownership().await.unwrap().iter().all(|row| row.owner.is_none()));
    }
}

/// A lease that nobody renews ends, and only then can another node claim.
// enforces: I-2
pub async fn a_lease_runs_out_by_the_log_s_clock(subject: Subject) {
    let log = &subject.log;
    let first = log.claim(&member("a"), &[P], SHORT).await.unwrap().remove(0);
    let mut taken = Vec::new();
    while taken.is_empty() {
        taken = log.claim(&member("b"), &[P], LONG).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(taken[0].epoch(), first.epoch().next());
    assert_eq!(log.renew(&member("a").node, &held(&first), LONG).await.unwrap(), [P], "it is lost");
    let row = log.ownership().await.unwrap().remove(usize::from(P.0));
    assert_eq!(row.owner, Some(member("b")));
}

/// A renewed lease is not free; a released one is at once, but only for a release under its epoch.
pub async fn renewing_keeps_and_releasing_frees(subject: Subject) {
    let log = &subject.log;
    let q = PartitionId(24);
    let leases = log.claim(&member("a"), &[q, P], SHORT).await.unwrap();
    let both: Vec<_> = leases.iter().map(|lease| (lease.partition(), lease.epoch())).collect();
    assert_eq!(both.iter().map(|(p, _)| *p).collect::<Vec<_>>(), [P, q], "in order");
    // Whether or not they ran out meanwhile: nobody else has claimed them.
    assert!(log.renew(&member("a").node, &both, LONG).await.unwrap().is_empty());
    assert!(log.claim(&member("b"), &[P, q], LONG).await.unwrap().is_empty(), "both are held");
    let stale = [(P, Epoch(77)), (q, both[1].1)];
    assert_eq!(log.renew(&member("a").node, &stale, LONG).await.unwrap(), [P]);
    assert_eq!(log.renew(&member("b").node, &both, LONG).await.unwrap(), [P, q], "not b's");
    log.release(&[(P, Epoch(77))]).await.unwrap();
    assert!(log.claim(&member("b"), &[P], LONG).await.unwrap().is_empty(), "not released");
    log.release(&both[..1]).await.unwrap();
    assert_eq!(log.renew(&member("a").node, &both, LONG).await.unwrap(), [P], "a released lease is lost");
    let taken = log.claim(&member("b"), &[P, q], LONG).await.unwrap();
    assert_eq!(taken.iter().map(crate::Lease::partition).collect::<Vec<_>>(), [P]);
    assert!(log.claim(&member("b"), &[], LONG).await.unwrap().is_empty());
    assert!(log.renew(&member("b").node, &[], LONG).await.unwrap().is_empty());
}

/// The mark of what was published never goes back, and a former owner does not move it.
pub async fn publishing_is_noted_by_the_owner_only(subject: Subject) {
    let log = &subject.log;
    let mut scribe = Scribe::claim(log, "a", P).await;
    scribe.write(0, 9).await;
    log.published(&scribe.lease, Offset(7)).await.unwrap();
    log.published(&scribe.lease, Offset(3)).await.unwrap();
    log.release(&held(&scribe.lease)).await.unwrap();
    let second = claim(&**log, "b", P).await;
    assert_eq!((second.head(), second.published()), (Offset(9), Offset(7)));
    log.published(&scribe.lease, Offset(9)).await.unwrap();
    log.release(&held(&second)).await.unwrap();
    assert_eq!(claim(&**log, "c", P).await.published(), Offset(7));
}

/// A member is one for as long as it says so.
pub async fn members_come_and_go(subject: Subject) {
    let (log, other) = (&subject.log, (subject.again)().await);
    let (a, b) = (member("a"), member("b"));
    assert_eq!(log.join(&b, LONG).await.unwrap(), std::slice::from_ref(&b));
    assert_eq!(other.join(&a, SHORT).await.unwrap(), [a.clone(), b.clone()], "in order");
    until(async || log.join(&b, LONG).await.unwrap() == std::slice::from_ref(&b)).await;
    let moved = Member { address: "http://elsewhere:1".into(), ..a.clone() };
    assert_eq!(other.join(&moved, LONG).await.unwrap(), [moved.clone(), b.clone()], "under its new address");
    other.leave(&b.node).await.unwrap();
    other.leave(&b.node).await.unwrap();
    assert_eq!(log.join(&moved, LONG).await.unwrap(), std::slice::from_ref(&moved));
}
