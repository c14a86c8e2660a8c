//! A manager played over a socket pair: every job, no job, a job that vanishes, and no answer.

use std::collections::VecDeque;

use zbus::{Message, ObjectPath};

use super::*;
use crate::service::bus::tests::{Answer, error, peer, reply};
use crate::tasks::Tasks;

const UNIT: &str = "/org/freedesktop/systemd1/unit/bamf_2dagent_2eservice";
const FULL: Store = Store { limit: Some(4096), held: Some(7) };

/// A unit as the played manager has it.
struct Unit {
    /// The jobs of successive looks; the last one stays. One without a type is gone when its type is asked for.
    jobs: VecDeque<Option<Option<&'static str>>>,
    /// `Restart=`; `None` for what is no service.
    restart: Option<&'static str>,
    store: Store,
}

fn with_job(job: Option<&'static str>) -> Unit {
    Unit { jobs: [job.map(Some)].into(), restart: Some("always"), store: FULL }
}

impl Unit {
    fn answer(&mut self, message: &Message) -> Answer {
        let header = message.header();
        match header.member().map(|member| member.as_str()) {
            Some("GetUnitByPID") => {
                let pid: u32 = message.body().deserialize().unwrap();
                assert_eq!(pid, 0, "the caller, by whatever number the manager knows it");
                Answer::with(reply(message, &ObjectPath::try_from(UNIT).unwrap()))
            }
            Some("Get") => {
                let body = message.body();
                let (_interface, name): (&str, &str) = body.deserialize().unwrap();
                let value = self.value(name);
                Answer::with(value.map_or_else(
                    || error(message, "org.freedesktop.DBus.Error.UnknownProperty"),
                    |value| reply(message, &value),
                ))
            }
            other => panic!("{other:?} is not needed"),
        }
    }

    fn value(&mut self, name: &str) -> Option<Variant<'static>> {
        let job =
            |id: u32| Variant::from((id, ObjectPath::from_static_str_unchecked("/org/freedesktop/systemd1/job/9")));
        match name {
            "Job" => Some(job(u32::from(self.jobs[0].is_some()))),
            "JobType" => {
                let kind = self.jobs[0].expect("asked for without a job");
                if self.jobs.len() > 1 {
                    self.jobs.pop_front();
                }
                kind.map(Variant::from)
            }
            "Restart" => self.restart.map(Variant::from),
            "FileDescriptorStoreMax" => self.store.limit.map(Variant::from),
            "NFileDescriptorStore" => self.store.held.map(Variant::from),
            other => panic!("{other} is not needed"),
        }
    }
}

async fn ending(mut unit: Unit) -> Option<Ending> {
    let tasks = Tasks::new();
    let connection = peer(&tasks, move |message| unit.answer(message)).await;
    of_unit(&connection).await
}

#[tokio::test]
async fn a_job_that_starts_the_unit_again_is_a_restart() {
    for job in ["restart", "try-restart", "reload-or-restart", "start"] {
        assert_eq!(ending(with_job(Some(job))).await, Some(Ending::Restart(FULL)), "{job}");
    }
}

#[tokio::test]
async fn a_stop_is_a_stop_although_the_unit_restarts_after_a_clean_exit() {
    assert_eq!(ending(with_job(Some("stop"))).await, Some(Ending::Stop));
}

#[tokio::test]
async fn a_signal_without_a_job_means_what_the_unit_does_after_a_clean_exit() {
    let cases = [
        (Some("always"), Ending::Restart(FULL)),
        (Some("on-success"), Ending::Restart(FULL)),
        (Some("on-failure"), Ending::Stop),
        (Some("on-abnormal"), Ending::Stop),
        (Some("no"), Ending::Stop),
        // E.g. a session's scope, whose parent left it a $NOTIFY_SOCKET.
        (None, Ending::Stop),
    ];
    for (restart, expected) in cases {
        for job in [None, Some("reload"), Some("verify-active")] {
            assert_eq!(ending(Unit { restart, ..with_job(job) }).await, Some(expected), "{restart:?} with {job:?}");
        }
    }
}

#[tokio::test]
async fn a_word_of_a_later_systemd_is_not_guessed() {
    assert_eq!(ending(with_job(Some("hibernate"))).await, Some(Ending::Unknown));
}

#[tokio::test]
async fn a_job_that_is_replaced_between_two_questions_is_asked_for_again() {
    let replaced = Unit { jobs: [Some(None), Some(Some("start"))].into(), ..with_job(None) };
    assert_eq!(ending(replaced).await, Some(Ending::Restart(FULL)));
    let over = Unit { jobs: [Some(None), None].into(), restart: Some("no"), ..with_job(None) };
    assert_eq!(ending(over).await, Some(Ending::Stop));
}

#[tokio::test]
async fn a_job_whose_type_is_never_told_is_no_answer() {
    assert_eq!(ending(Unit { jobs: [Some(None)].into(), ..with_job(None) }).await, None);
}

#[tokio::test]
async fn a_manager_without_a_descriptor_store_says_nothing_about_room() {
    let nothing = Unit { store: Store::default(), ..with_job(Some("restart")) };
    let Some(Ending::Restart(store)) = ending(nothing).await else { panic!("a restart") };
    assert_eq!(store.room(), None);
    assert_eq!(FULL.room(), Some(4089));
    assert_eq!(Store { limit: Some(3), held: Some(5) }.room(), Some(0), "lowered while it was full");
}

#[tokio::test]
async fn a_manager_that_knows_no_unit_or_hangs_up_is_no_answer() {
    let tasks = Tasks::new();
    for hang_up in [false, true] {
        let connection = peer(&tasks, move |message| {
            if hang_up {
                Answer::hang_up()
            } else {
                Answer::with(error(message, "org.freedesktop.systemd1.NoUnitForPID"))
            }
        })
        .await;
        assert_eq!(of_unit(&connection).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_does_not_answer_is_given_up_after_two_seconds() {
    let began = Instant::now();
    assert_eq!(limited(std::future::pending()).await, Ending::Unknown);
    assert_eq!(began.elapsed(), LIMIT);
    assert_eq!(limited(async { None }).await, Ending::Unknown);
    assert_eq!(limited(async { Some(Ending::Stop) }).await, Ending::Stop);
}

#[tokio::test]
async fn without_a_service_manager_nobody_is_asked() {
    assert_eq!(ask(None).await, Ending::Stop);
}

#[test]
fn the_socket_tells_whose_service_it_is() {
    for (socket, manager) in [
        ("/run/systemd/notify", Manager::System),
        ("@/org/freedesktop/systemd1/notify", Manager::System),
        ("/run/user/1000/systemd/notify", Manager::User),
    ] {
        assert_eq!(manager_behind(socket), manager, "{socket}");
    }
}

#[test]
fn an_announcement_counts_only_where_the_manager_did_not_say() {
    let restart = Ending::Restart(FULL);
    for (said, announced, expected) in [
        (Ending::Unknown, true, Ending::Restart(Store::default())),
        (Ending::Unknown, false, Ending::Unknown),
        (Ending::Stop, true, Ending::Stop),
        (Ending::Stop, false, Ending::Stop),
        (restart, true, restart),
        (restart, false, restart),
    ] {
        assert_eq!(said.or_announced(announced), expected, "{said:?}, announced: {announced}");
    }
}
