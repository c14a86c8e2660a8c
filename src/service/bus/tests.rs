//! A manager played over a socket pair: late, early, foreign and missing signals.

use std::os::unix::net::UnixStream;

use super::*;
use crate::service::unit::Active;
use crate::tasks::Tasks;

const JOB: &str = "/org/freedesktop/systemd1/job/7";
const UNIT: &str = "bamf-agent.service";
const LIMIT: Duration = Duration::from_secs(20);

/// How the played manager behaves when it is asked for a job.
#[derive(Clone, Copy)]
enum Play {
    /// Signals of other jobs, then ours with this result, before the answer to the call.
    Early(&'static str),
    /// The same after the answer.
    Late(&'static str),
    /// The answer and no signal.
    Silent,
    /// The answer, then the connection ends.
    HangUp,
    /// An error of this name.
    Refuse(&'static str),
}

/// What a played manager does about one call.
pub(in crate::service) struct Answer {
    messages: Vec<Message>,
    goes_on: bool,
}

impl Answer {
    pub(in crate::service) fn with(message: Message) -> Self {
        Self { messages: vec![message], goes_on: true }
    }

    pub(in crate::service) fn hang_up() -> Self {
        Self { messages: Vec::new(), goes_on: false }
    }
}

/// A connection to a manager that `answer` plays, until it hangs up.
pub(in crate::service) async fn peer(
    tasks: &Tasks,
    mut answer: impl FnMut(&Message) -> Answer + Send + 'static,
) -> Connection {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = Builder::unix_stream(theirs).server("0123456789abcdef0123456789abcdef").p2p();
    let client = Builder::unix_stream(ours).p2p().method_timeout(CALL_LIMIT);
    let (server, client) = tokio::join!(server.build(), client.build());
    let connection = server.unwrap();
    let mut server = MessageStream::from(&connection);
    tasks.spawn("manager", async move {
        while let Some(Ok(message)) = poll_fn(|context| Pin::new(&mut server).poll_next(context)).await {
            if message.message_type() != Type::MethodCall {
                continue;
            }
            let answer = answer(&message);
            for message in &answer.messages {
                connection.send(message).await.unwrap();
            }
            if !answer.goes_on {
                break;
            }
        }
    });
    client.unwrap()
}

pub(in crate::service) fn reply<B: serde::Serialize + DynamicType>(call: &Message, body: &B) -> Message {
    Message::method_return(&call.header()).build(body).unwrap()
}

pub(in crate::service) fn error(call: &Message, name: &'static str) -> Message {
    Message::error(&call.header(), name).build(&"because").unwrap()
}

async fn played(play: Play, tasks: &Tasks) -> Services {
    Services { via: Via::DBus(peer(tasks, move |message| answer(message, play)).await) }
}

fn answer(message: &Message, play: Play) -> Answer {
    let header = message.header();
    match header.member().map(|member| member.as_str()) {
        Some("Subscribe") => Answer::with(reply(message, &())),
        Some("LoadUnit") => Answer::with(reply(message, &job("unit/x"))),
        Some("GetAll") => Answer::with(reply(message, &all())),
        _ => answer_job(message, play),
    }
}

fn answer_job(message: &Message, play: Play) -> Answer {
    let named = reply(message, &ObjectPath::try_from(JOB).unwrap());
    let messages = match play {
        Play::Early(result) => [&signals(result)[..], &[named]].concat(),
        Play::Late(result) => [&[named], &signals(result)[..]].concat(),
        Play::Silent | Play::HangUp => vec![named],
        Play::Refuse(name) => vec![error(message, name)],
    };
    Answer { messages, goes_on: !matches!(play, Play::HangUp) }
}

fn signals(result: &str) -> [Message; 2] {
    [("/org/freedesktop/systemd1/job/6", "failed"), (JOB, result)].map(|(path, result)| {
        let body = (7_u32, ObjectPath::try_from(path).unwrap(), UNIT, result);
        Message::signal(PATH, MANAGER, "JobRemoved").build(&body).unwrap()
    })
}

fn job(name: &str) -> ObjectPath<'static> {
    ObjectPath::try_from(format!("{PATH}/{name}")).unwrap()
}

fn all() -> HashMap<&'static str, Variant<'static>> {
    HashMap::from([
        ("LoadState", Variant::from("loaded")),
        ("ActiveState", Variant::from("active")),
        ("MainPID", Variant::from(812_u32)),
        ("NRestarts", Variant::from(2_u32)),
        ("ActiveEnterTimestampMonotonic", Variant::from(42_000_000_u64)),
        ("ExecStart", Variant::from(vec![("/usr/local/bin/bamf-agent", 1_u64)])),
        ("Noise", Variant::from(true)),
    ])
}

async fn restart(play: Play, limit: Duration) -> Result<(), Error> {
    let tasks = Tasks::new();
    played(play, &tasks).await.run(Verb::Restart, UNIT, limit).await
}

#[tokio::test]
async fn a_job_that_is_over_before_it_is_named_is_not_missed() {
    restart(Play::Early("done"), LIMIT).await.unwrap();
}

#[tokio::test]
async fn the_end_of_another_job_is_not_taken_for_ours() {
    restart(Play::Late("done"), LIMIT).await.unwrap();
}

#[tokio::test]
async fn a_job_that_fails_says_how() {
    for result in ["failed", "timeout", "canceled", "dependency"] {
        let error = restart(Play::Late(result), LIMIT).await.unwrap_err();
        assert!(matches!(&error, Error::Job { result: found, .. } if found == result), "{error}");
        assert!(error.to_string().contains("journalctl -u bamf-agent.service"), "{error}");
    }
}

#[tokio::test]
async fn a_job_without_an_end_is_given_up_at_the_limit() {
    let error = restart(Play::Silent, Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, Error::TooSlow { .. }), "{error}");
}

#[tokio::test]
async fn a_connection_that_ends_in_the_middle_is_noticed_at_once() {
    let error = restart(Play::HangUp, LIMIT).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. } | Error::Call { .. }), "{error}");
}

#[tokio::test]
async fn the_managers_refusals_become_sentences() {
    let no_unit = restart(Play::Refuse("org.freedesktop.systemd1.NoSuchUnit"), LIMIT).await.unwrap_err();
    assert!(matches!(no_unit, Error::NoUnit { .. }), "{no_unit}");
    for name in ["AccessDenied", "InteractiveAuthorizationRequired"] {
        let name = format!("org.freedesktop.DBus.Error.{name}").leak();
        let refused = restart(Play::Refuse(name), LIMIT).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "systemd does not let this user restart bamf-agent.service; run the command as root"
        );
    }
    let other = restart(Play::Refuse("org.freedesktop.systemd1.UnitMasked"), LIMIT).await.unwrap_err();
    assert!(matches!(other, Error::Call { .. }), "{other}");
}

#[tokio::test]
async fn a_units_properties_are_read() {
    let tasks = Tasks::new();
    let unit = played(Play::Silent, &tasks).await.unit(UNIT).await.unwrap();
    assert_eq!((unit.active, unit.main_pid, unit.restarts), (Active::Active, Some(812), 2));
    assert_eq!((unit.main_started, unit.entered_active), (0, 42_000_000));
    assert_eq!(unit.program, Some("/usr/local/bin/bamf-agent".into()));
}
