//! Relay connections by agent name, and the reaper that makes room among them (protocol 9.2).
//!
//! The first free connection of the list is always the one that is used, so the rest of a pool is idle and is closed every
//! few minutes. The reaper asks only when a connection last answered: it cuts busy ones just the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::life::{Life, locked};
use super::link::{Link, close};

#[derive(Debug)]
struct Entry {
    number: u64,
    /// Absent while a request uses it.
    link: Option<Link>,
    answered: Instant,
    /// Rung when the reaper wants a busy connection.
    reaped: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Lists {
    by_agent: HashMap<String, Vec<Entry>>,
    last_number: u64,
    /// Connections that left for a stream or an upgrade and are still open, by agent.
    detached: HashMap<String, usize>,
}

/// All pools of a bridge.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Lists>);

/// A connection in use.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) link: Link,
    pub(crate) number: u64,
    pub(crate) reaped: Arc<Notify>,
}

/// What a pool can give.
#[derive(Debug)]
pub(crate) enum Offer {
    Free(Box<Taken>),
    AllBusy,
    Nothing,
}

impl Pool {
    pub(crate) fn add(&self, agent: &str, link: Link) {
        let mut lists = locked(&self.0);
        lists.last_number += 1;
        let number = lists.last_number;
        let entry = Entry { number, link: Some(link), answered: Instant::now(), reaped: Arc::default() };
        lists.by_agent.entry(agent.to_owned()).or_default().push(entry);
    }

    pub(crate) fn take(&self, agent: &str) -> Offer {
        let mut lists = locked(&self.0);
        let Some(list) = lists.by_agent.get_mut(agent).filter(|list| !list.is_empty()) else { return Offer::Nothing };
        let free = list.iter_mut().find_map(|entry| Some((entry.link.take()?, entry.number, &entry.reaped)));
        free.map_or(Offer::AllBusy, |(link, number, reaped)| {
            Offer::Free(Box::new(Taken { link, number, reaped: Arc::clone(reaped) }))
        })
    }

    /// A connection has answered, which keeps the reaper away.
    pub(crate) fn answered(&self, agent: &str, number: u64) {
        if let Some(entry) = find(&mut locked(&self.0), agent, number) {
            entry.answered = Instant::now();
        }
    }

    /// Puts a connection back in its place; gives it back when it was reaped meanwhile.
    pub(crate) fn give_back(&self, agent: &str, number: u64, link: Link) -> Option<Link> {
        match find(&mut locked(&self.0), agent, number) {
            Some(entry) => {
                entry.link = Some(link);
                None
            }
            None => Some(link),
        }
    }

    /// A connection that is used leaves its pool for good.
    pub(crate) fn remove(&self, agent: &str, number: u64) {
        if let Some(list) = locked(&self.0).by_agent.get_mut(agent) {
            list.retain(|entry| entry.number != number);
        }
    }

    pub(crate) fn detach(self: &Pool, agent: &str, number: u64) {
        self.remove(agent, number);
        *locked(&self.0).detached.entry(agent.to_owned()).or_default() += 1;
    }

    pub(crate) fn detached_ended(&self, agent: &str) {
        if let Some(count) = locked(&self.0).detached.get_mut(agent) {
            *count = count.saturating_sub(1);
        }
    }

    pub(crate) fn detached(&self, agent: &str) -> usize {
        locked(&self.0).detached.get(agent).copied().unwrap_or(0)
    }

    /// Connections of an agent's pool, and how many of them are in use.
    pub(crate) fn size(&self, agent: &str) -> (usize, usize) {
        let lists = locked(&self.0);
        let list = lists.by_agent.get(agent).map(Vec::as_slice).unwrap_or_default();
        (list.len(), list.iter().filter(|entry| entry.link.is_none()).count())
    }

    /// Takes out what `condemned` says and returns the idle ones, which are to be closed; busy ones are told.
    fn condemn(&self, condemned: impl Fn(&str, &Entry) -> bool, most: usize) -> (usize, Vec<Link>) {
        let (mut count, mut idle) = (0, Vec::new());
        for (agent, list) in &mut locked(&self.0).by_agent {
            list.retain_mut(|entry| {
                if count == most || !condemned(agent, entry) {
                    return true;
                }
                count += 1;
                entry.reaped.notify_one();
                idle.extend(entry.link.take());
                false
            });
        }
        (count, idle)
    }

    /// Closes connections of an agent now, at most so many, the first of the list first.
    pub(crate) fn reap(&self, agent: &str, most: usize) -> (usize, Vec<Link>) {
        self.condemn(|name, _| name == agent, most)
    }

    pub(crate) async fn close_all(&self) {
        close_links(self.condemn(|_, _| true, usize::MAX).1).await;
    }

    pub(crate) fn clear(&self) {
        locked(&self.0).by_agent.clear();
    }
}

fn find<'a>(lists: &'a mut Lists, agent: &str, number: u64) -> Option<&'a mut Entry> {
    lists.by_agent.get_mut(agent)?.iter_mut().find(|entry| entry.number == number)
}

pub(crate) async fn close_links(links: Vec<Link>) {
    for link in links {
        close(link).await;
    }
}

/// Closes, once in a while, what has not answered for long.
pub(crate) async fn reap_for_ever(life: &Arc<Life>) {
    loop {
        tokio::time::sleep(life.base.options.reaper_period).await;
        let limit = life.base.options.reaper_idle;
        let (_, idle) = life.pool.condemn(|_, entry| entry.answered.elapsed() > limit, usize::MAX);
        close_links(idle).await;
        life.base.note(|_| ());
    }
}

/// What a connection has to say before it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Quiet,
    Ended,
    Speaking,
}

/// Looks at a connection that was idle: bytes that nobody asked for would be taken for the next response.
pub(crate) fn condition(link: &mut Link) -> Condition {
    if !link.surplus().is_empty() {
        return Condition::Speaking;
    }
    match link.peek(&mut Context::from_waker(Waker::noop())) {
        Poll::Pending => Condition::Quiet,
        Poll::Ready(Ok(1..)) => Condition::Speaking,
        Poll::Ready(Ok(0) | Err(_)) => Condition::Ended,
    }
}

/// The bridge's waiting for a free connection.
pub(crate) const POLL: Duration = Duration::from_millis(50);
