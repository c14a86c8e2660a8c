//! Many requests at once, and how long they took.

use std::time::{Duration, Instant};

use super::{Error, Visitor};

/// What a run has shown.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Requests answered with a status below 400.
    pub good: usize,
    /// Requests answered otherwise.
    pub refused: usize,
    /// Requests without a whole answer.
    pub failed: usize,
    /// Bytes of all bodies.
    pub bytes: u64,
    /// From the first request to the last answer.
    pub took: Duration,
    /// Half of the requests were faster.
    pub p50: Duration,
    /// One in a hundred was slower.
    pub p99: Duration,
}

impl Measured {
    /// Answers a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        (self.good + self.refused) as f64 / self.took.as_secs_f64()
    }
}

impl Visitor {
    /// Sends `requests` GETs in all, from `workers` connections at once that are kept open, and waits for the end.
    #[must_use]
    pub fn measure(&self, path: &str, workers: usize, requests: usize) -> Measured {
        let began = Instant::now();
        let outcomes = crate::runtime::block_on(async {
            let mut tasks = Vec::new();
            for worker in 0..workers {
                // The first workers take what is left over.
                let share = requests / workers + usize::from(worker < requests % workers);
                let (visitor, path) = (self.clone(), path.to_owned());
                tasks.push(tokio::spawn(async move { visitor.work(&path, share).await }));
            }
            let mut outcomes = Vec::with_capacity(requests);
            for task in tasks {
                outcomes.extend(task.await.unwrap_or_default());
            }
            outcomes
        });
        summary(&outcomes, requests, began.elapsed())
    }

    async fn work(&self, path: &str, requests: usize) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(requests);
        let mut visit = None;
        for _ in 0..requests {
            let began = Instant::now();
            let answer: Result<_, Error> = async {
                let mut open = match visit.take() {
                    Some(open) => open,
                    None => self.session().await?,
                };
                let answer = open.ask("GET", path, &[], b"").await?;
                visit = Some(open);
                Ok((answer.status, answer.body.len() as u64))
            }
            .await;
            outcomes.push((answer.ok(), began.elapsed()));
        }
        outcomes
    }
}

/// Status and length of the body if there was an answer, and how long it took.
type Outcome = (Option<(u16, u64)>, Duration);

fn summary(outcomes: &[Outcome], requests: usize, took: Duration) -> Measured {
    let answers: Vec<(u16, u64)> = outcomes.iter().filter_map(|(answer, _)| *answer).collect();
    let good = answers.iter().filter(|(status, _)| *status < 400).count();
    let mut times: Vec<Duration> = outcomes.iter().map(|(_, took)| *took).collect();
    times.sort_unstable();
    let at = |hundredth: usize| times.get((times.len() * hundredth / 100).min(times.len().saturating_sub(1)));
    Measured {
        good,
        refused: answers.len() - good,
        failed: requests - answers.len(),
        bytes: answers.iter().map(|(_, length)| length).sum(),
        took,
        p50: at(50).copied().unwrap_or_default(),
        p99: at(99).copied().unwrap_or_default(),
    }
}
