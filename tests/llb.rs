//! LLB: graphs that a client writes itself, each operation against its meaning.

mod support;

use kiln::types::build::frontend::{
    self, EvaluateRequest, ReadDirRequest, ReadFileRequest, Ref, StatFileRequest, result,
};
use kiln::types::build::{SolveRequest, pb};
use support::Daemon;
use support::frontend::Frontend;
use support::llb::{Bind, Llb, mkdir, mkfile};

/// A frontend at the client that asks for definitions.
struct Asking {
    client: Frontend,
    build: tokio::task::JoinHandle<Result<kiln::types::build::SolveResponse, tonic::Status>>,
}

impl Asking {
    async fn open(daemon: &Daemon, name: &str) -> Self {
        let client = Frontend::open(daemon, name).await;
        let build = client.begin(name);
        Self { client, build }
    }

    /// Has a definition taken; nothing runs for that.
    async fn solve(&mut self, definition: pb::Definition) -> Result<String, tonic::Status> {
        let request = frontend::SolveRequest { definition: Some(definition), ..frontend::SolveRequest::default() };
        let request = self.client.call(request);
        let solved = self.client.bridge.solve(request).await?.into_inner().result.unwrap_or_default();
        match solved.result {
            Some(result::Result::Ref(Ref { id, .. })) => Ok(id),
            other => panic!("expected one result, got {other:?}"),
        }
    }

    async fn evaluate(&mut self, id: &str) -> Result<(), tonic::Status> {
        let request = self.client.call(EvaluateRequest { r#ref: id.to_owned() });
        self.client.bridge.evaluate(request).await.map(drop)
    }

    /// Reads a file of the result of a definition.
    async fn cat(&mut self, definition: pb::Definition, path: &str) -> Result<String, tonic::Status> {
        let id = self.solve(definition).await?;
        self.read(&id, path).await
    }

    async fn read(&mut self, id: &str, path: &str) -> Result<String, tonic::Status> {
        let request = ReadFileRequest { r#ref: id.to_owned(), file_path: path.to_owned(), ..Default::default() };
        let request = self.client.call(request);
        let data = self.client.bridge.read_file(request).await?.into_inner().data;
        Ok(String::from_utf8(data).expect("text"))
    }

    /// Lists a directory of a result.
    async fn list(&mut self, id: &str, path: &str) -> Vec<String> {
        let request = ReadDirRequest { r#ref: id.to_owned(), dir_path: path.to_owned(), ..ReadDirRequest::default() };
        let request = self.client.call(request);
        let entries = self.client.bridge.read_dir(request).await.expect("list a directory").into_inner().entries;
        entries.into_iter().map(|entry| entry.path).collect()
    }

    /// Says permissions and owner of a path.
    async fn stat(&mut self, id: &str, path: &str) -> String {
        let request =
            self.client.call(StatFileRequest { r#ref: id.to_owned(), path: path.to_owned(), ..Default::default() });
        let stat = self.client.bridge.stat_file(request).await.expect("look at a path").into_inner();
        let stat = stat.stat.expect("the answer has a stat");
        format!("{:o} {}:{}", stat.mode & 0o777, stat.uid, stat.gid)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_definition_is_built_and_exported() {
    let Some(daemon) = Daemon::start() else { return };
    let mut llb = Llb::default();
    let base = llb.busybox();
    let made = llb.file(&base, vec![mkdir("/app/dir", 0o750), mkfile("/app/dir/f", 0o640, "hello")]);
    let ran = llb.sh(&made, "cat /app/dir/f > /copied && echo $PATH > /path");
    let client = Frontend::open(&daemon, "direct").await;
    let attrs = std::collections::HashMap::from([("name".to_owned(), "built".to_owned())]);
    let request = SolveRequest {
        r#ref: "direct".into(),
        session: client.session.clone(),
        definition: Some(llb.end(&ran)),
        exporters: vec![kiln::types::build::Exporter { r#type: "image".into(), attrs }],
        ..SolveRequest::default()
    };
    let response = client.control.clone().solve(request).await.unwrap().into_inner().exporter_response;
    assert!(response.contains_key("containerimage.digest"), "{response:?}");
    assert_eq!(daemon.cat("built", "/copied"), "hello");
    assert_eq!(daemon.cat("built", "/path"), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let ls = ["run", "--rm", "built", "stat", "-c", "%a %u:%g", "/app/dir", "/app/dir/f"];
    assert_eq!(daemon.command(&ls).ok(), "750 0:0\n640 0:0");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_client_asks_for_definitions_and_looks_at_results() {
    let Some(daemon) = Daemon::start() else { return };
    let mut asking = Asking::open(&daemon, "asks").await;
    let mut llb = Llb::default();
    let base = llb.busybox();
    let step = llb.sh(&base, "mkdir /d && echo one > /d/f && chmod 600 /d/f && chown 5:6 /d/f");
    let id = asking.solve(llb.end(&step)).await.unwrap();
    asking.evaluate(&id).await.unwrap();
    assert_eq!(asking.read(&id, "/d/f").await.unwrap(), "one\n");
    assert_eq!(
        (asking.list(&id, "/d").await, asking.stat(&id, "/d/f").await),
        (vec!["f".to_owned()], "600 5:6".to_owned())
    );

    // A process with two outputs beside its root runs once, and later steps see each of them.
    let mut llb = Llb::default();
    let base = llb.busybox();
    let seed = llb.file(&None, vec![mkfile("/kept", 0o644, "kept")]);
    let script = "cat /proc/sys/kernel/random/uuid | tee /a/id > /b/id; cat /a/kept > /b/copy";
    let outputs = llb.run(&base, script, &[Bind::kept(&seed, "/a"), Bind::kept(&None, "/b")]);
    let [_, a, b] = outputs.as_slice() else { panic!("{outputs:?}") };
    let compare = [Bind::of(a, "/x"), Bind::of(b, "/y")];
    let last = llb.run(&base, "cmp /x/id /y/id && ls /x > /out && cat /y/copy >> /out", &compare).remove(0);
    assert_eq!(asking.cat(llb.end(&last), "/out").await.unwrap(), "id\nkept\nkept");
    asking.build.abort();
}
