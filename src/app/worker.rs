//! One core: its runtime, its connections to registries, its listeners.

use std::{
    net::SocketAddr,
    process,
    rc::Rc,
    sync::{Arc, mpsc},
};

use super::{
    Event, Shared,
    runtime::{self, Choice},
    story,
};
use crate::{
    api::{Admin, Api},
    blocking::Receiver,
    mirror::{Mirror, PushRule, jobs},
    net::{Listener, Transfer},
    server::{Edge, Load},
};

pub(super) struct Plan {
    pub(super) shared: Arc<Shared>,
    pub(super) choice: Choice,
    /// Which of the cores it is.
    pub(super) core: usize,
    /// How many it may have for sending.
    pub(super) pipes: usize,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) admin: Option<SocketAddr>,
    /// Answers, with nothing, when the process is to stop.
    pub(super) stopped: Receiver<()>,
    pub(super) events: mpsc::Sender<Event>,
}

/// A core that ends takes a share of all connections with it, so the process ends with it; the next start
/// finds everything whole.
pub(super) fn run(plan: Plan) {
    struct Fatal;
    impl Drop for Fatal {
        fn drop(&mut self) {
            // Past the log, whose thread would not get to it.
            eprintln!("tidegate: a core ended, so the process does; the reason is above");
            process::exit(70);
        }
    }
    let _fatal = Fatal;
    match runtime::build(&plan.choice) {
        Ok(mut core) => core.block_on(work(plan)),
        Err(error) => eprintln!("tidegate: a core has no runtime: {error}"),
    }
}

async fn work(plan: Plan) {
    let Plan {
        shared,
        core,
        addresses,
        admin,
        pipes,
        stopped,
        events,
        ..
    } = plan;
    let story = &shared.story;
    let transfer = Transfer::new(Arc::clone(&story.pool), pipes);
    let pull = story.on_this_core(&transfer);
    let rule = PushRule {
        own: shared.api.own.clone(),
        is_shared: shared.mirror.push_with_own_logins,
    };
    let mirror = Mirror::new(&pull, &shared.mirror, rule, &shared.whereabouts);
    let api = Api::new(
        Rc::clone(&pull),
        Rc::clone(&mirror),
        Arc::clone(&shared.api),
    );
    let api = Rc::new(api);
    monoio::spawn(jobs::run(Arc::clone(&shared.api.jobs), core, mirror));
    let edge = Edge::new(
        shared.listener.clone(),
        shared.identity.clone(),
        Arc::clone(&shared.load),
        core,
        transfer,
    );
    monoio::spawn(Rc::clone(&edge).take_over(Rc::clone(&api)));
    if core == 0 {
        monoio::spawn(Rc::clone(&pull).heal());
    }
    monoio::spawn(story::close_idle(Rc::clone(&pull)));

    let mut stops = Vec::new();
    let mut serving = Vec::new();
    for address in addresses {
        let listener = listen(address);
        let (stop, stopped) = crate::blocking::oneshot::<()>();
        stops.push(stop);
        let stop = async move {
            stopped.receive().await;
        };
        serving.push(monoio::spawn(Rc::clone(&edge).serve(
            listener,
            Rc::clone(&api),
            stop,
        )));
    }
    if let Some(address) = admin {
        let listener = listen(address);
        let admin = Rc::new(Admin::new(
            Arc::clone(&shared) as Arc<_>,
            story.cache.clone(),
            Arc::clone(&story.pool),
            Rc::clone(&pull),
            Arc::clone(&story.desk),
            Arc::clone(&shared.api.jobs),
        ));
        // It answers to the end, so that an operator sees what is still running.
        // A flood of clients must not make us look dead to whoever watches.
        let edge = Edge::new(
            shared.listener.clone(),
            None,
            Load::of(1),
            0,
            // Its answers are small and come from memory.
            Transfer::new(Arc::clone(&story.pool), 0),
        );
        monoio::spawn(edge.serve(listener, admin, std::future::pending()));
    }
    let _ = events.send(Event::Listening);
    stopped.receive().await;
    drop(stops);
    for listener in serving {
        listener.await;
    }
    let _ = events.send(Event::Drained);
    // The kernel may still write into buffers of this runtime; the process ends as a whole.
    std::future::pending::<()>().await;
}

fn listen(address: SocketAddr) -> Listener {
    match Listener::on(address) {
        Ok(listener) => listener,
        Err(error) => {
            // Past the log, whose thread would not get to it.
            eprintln!("tidegate: cannot listen on {address}: {error}");
            process::exit(1);
        }
    }
}
