//! Real builds with a real solver: a root of their own, a base image of Debian's static busybox, real sandboxes.

mod builds;
mod mounts;
mod running;
mod steps;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_graph::Digest;
use kiln_graph::oci::{ContainerConfig, ImageConfig};

use super::progress::{Event, Progress, VertexState};
use super::session::Sessions;
use super::{BuildRequest, Built, Deps, Exporter, Failure, SCHEMA, Solver};

use crate::image::{Images, Imported, record};
use crate::network::{self, Naming, Network};
use crate::registry::{Client, Registries};
use crate::state::Root;
use crate::store::{self, Access, Store};
use crate::task::{Cancel, Clock, Tasks};

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "ls", "sleep", "mkdir", "true", "false", "date", "chmod", "rm", "touch", "id", "stat", "test",
    "dd", "wc", "grep", "hostname", "env", "mount",
];
const BASE: &str = "base";

/// A root with a base image, a context, and a solver.
struct World {
    dir: tempfile::TempDir,
    solver: Solver,
    sessions: Sessions,
    tasks: Tasks,
}

/// Runs a test in a network namespace of its own, where bridges may be made.
fn in_world(test: impl AsyncFnOnce(&World)) {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("the tests run as root");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::new();
        test(&world).await;
        world.shut_down().await;
    });
}

fn open(path: &Path) -> (Solver, Sessions, Tasks) {
    let clock = Clock::system();
    let schemas = [store::SCHEMA, record::SCHEMA, network::SCHEMA, SCHEMA];
    let root = Root::open(path, &schemas).unwrap();
    let store = Store::open(root.clone(), clock, None).unwrap();
    let images = Images::new(store.clone(), clock);
    let config = network::Config { naming: Naming::ByPath, ..network::Config::default() };
    let network = Network::open(root, clock, config).unwrap();
    let (registry, sessions, tasks) = (Client::new(Registries::default()), Sessions::default(), Tasks::new());
    let device_directories = vec![path.with_file_name("cdi")];
    let (shared, joined) = (sessions.clone(), tasks.clone());
    let settings = crate::solver::Settings::default();
    let deps =
        Deps { store, images, network, registry, sessions: shared, tasks: joined, device_directories, settings, clock };
    (Solver::open(deps).unwrap(), sessions, tasks)
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (solver, sessions, tasks) = open(&dir.path().join("root"));
        let world = Self { dir, solver, sessions, tasks };
        std::fs::create_dir(world.context()).unwrap();
        world.import_base();
        world
    }

    fn import_base(&self) {
        let mut tar = tar::Builder::new(Vec::new());
        let mut put = |path: &str, kind: tar::EntryType, mode: u32, data: &[u8], link: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(data.len() as u64);
            header.set_mtime(1_000_000_000);
            if !link.is_empty() {
                header.set_link_name(link).unwrap();
            }
            tar.append_data(&mut header, path, data).unwrap();
        };
        for (path, mode) in [("bin/", 0o755), ("etc/", 0o755), ("tmp/", 0o1777), ("root/", 0o700)] {
            put(path, tar::EntryType::Directory, mode, &[], "");
        }
        let busybox = std::fs::read(BUSYBOX).expect("busybox-static is installed");
        put("bin/busybox", tar::EntryType::Regular, 0o755, &busybox, "");
        for applet in APPLETS {
            put(&format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, &[], "busybox");
        }
        let passwd = b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n";
        put("etc/passwd", tar::EntryType::Regular, 0o644, passwd, "");
        put("etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\napp:x:1001:\n", "");
        let archive = tar.into_inner().unwrap();
        let images = &self.solver.deps().images;
        let config = ImageConfig {
            config: ContainerConfig { env: vec!["PATH=/bin".to_owned()], ..ContainerConfig::default() },
            ..ImageConfig::default()
        };
        let what = Imported { config, message: String::new(), name: Some(BASE.parse().unwrap()) };
        let lease = self.store().lease("test").unwrap();
        images.import(&lease, archive.as_slice(), what, &Cancel::new()).unwrap();
    }

    fn store(&self) -> &Store {
        &self.solver.deps().store
    }

    fn context(&self) -> PathBuf {
        self.dir.path().join("context")
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Writes a file of the context.
    fn put(&self, path: &str, text: &str) {
        let path = self.context().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn request(&self, dockerfile: &str) -> BuildRequest {
        BuildRequest {
            frontend: "dockerfile.v0".to_owned(),
            locals: BTreeMap::from([("context".to_owned(), self.context())]),
            dockerfile: Some(dockerfile.as_bytes().to_vec()),
            exporters: vec![Exporter {
                kind: "image".to_owned(),
                attrs: BTreeMap::from([("name".to_owned(), "out".to_owned())]),
            }],
            ..BuildRequest::default()
        }
    }

    async fn build(&self, dockerfile: &str) -> Outcome {
        self.run(self.request(dockerfile)).await
    }

    async fn run(&self, request: BuildRequest) -> Outcome {
        run(&self.solver, request).await
    }

    /// Reads a file of the image that was built last.
    fn read(&self, path: &str) -> Option<String> {
        self.read_of("out", path)
    }

    fn read_of(&self, image: &str, path: &str) -> Option<String> {
        let images = &self.solver.deps().images;
        let lease = self.store().lease("test").unwrap();
        let image = images.find(&lease, image).unwrap();
        let snapshot = images.snapshot(&lease, &image).unwrap();
        let mount = self.store().rootfs(snapshot).unwrap().mount(Access::ReadOnly).unwrap();
        let flags = rustix::fs::OFlags::RDONLY;
        let resolve = rustix::fs::ResolveFlags::IN_ROOT;
        let file = rustix::fs::openat2(&mount, path, flags, rustix::fs::Mode::empty(), resolve).ok()?;
        Some(std::io::read_to_string(std::fs::File::from(file)).unwrap())
    }

    /// Ends everything that runs in the background.
    async fn shut_down(&self) {
        assert!(self.tasks.shutdown(std::time::Duration::from_secs(20)).await, "something does not end");
    }
}

async fn run(solver: &Solver, request: BuildRequest) -> Outcome {
    let progress = Progress::new(Clock::system());
    let result = solver.build(request, progress.clone()).await;
    progress.end();
    let mut watcher = progress.watch();
    let mut events = Vec::new();
    while let Some(more) = watcher.next().await {
        events.extend(more);
    }
    Outcome { result, events }
}

/// How a build ended, and what it reported.
struct Outcome {
    result: Result<Built, Failure>,
    events: Vec<Event>,
}

impl Outcome {
    #[track_caller]
    fn built(&self) -> &Built {
        match &self.result {
            Ok(built) => built,
            Err(failure) => panic!("{failure:?}\n{}", self.printed()),
        }
    }

    #[track_caller]
    fn error(&self) -> String {
        self.result.as_ref().expect_err("the build fails").error.to_string()
    }

    #[track_caller]
    fn image(&self) -> String {
        self.built().response["containerimage.config.digest"].clone()
    }

    /// The last state of each vertex.
    fn vertices(&self) -> Vec<VertexState> {
        let mut order: Vec<Digest> = Vec::new();
        let mut states = std::collections::HashMap::new();
        for event in &self.events {
            if let Event::Vertex(state) = event
                && states.insert(state.digest, state.clone()).is_none()
            {
                order.push(state.digest);
            }
        }
        order.iter().map(|digest| states[digest].clone()).collect()
    }

    /// Whether the step whose name contains a text was found in the cache.
    #[track_caller]
    fn cached(&self, text: &str) -> bool {
        let vertices = self.vertices();
        let names: Vec<&str> = vertices.iter().map(|vertex| vertex.name.as_str()).collect();
        let found = vertices.iter().find(|vertex| vertex.name.contains(text));
        found.unwrap_or_else(|| panic!("no step {text:?} among {names:?}")).cached
    }

    fn has(&self, text: &str) -> bool {
        self.vertices().iter().any(|vertex| vertex.name.contains(text))
    }

    fn printed(&self) -> String {
        let data = self.events.iter().filter_map(|event| match event {
            Event::Log { data, .. } => Some(data.as_ref()),
            _ => None,
        });
        String::from_utf8_lossy(&data.collect::<Vec<_>>().concat()).into_owned()
    }
}
