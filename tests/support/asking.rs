//! A frontend at the client that writes its graphs itself.

use kiln::types::build::frontend::{
    self, EvaluateRequest, ReadDirRequest, ReadFileRequest, Ref, StatFileRequest, result,
};
use kiln::types::build::pb;

use super::Daemon;
use super::frontend::Frontend;

/// A frontend at the client that asks for definitions.
pub struct Asking {
    pub client: Frontend,
    pub build: tokio::task::JoinHandle<Result<kiln::types::build::SolveResponse, tonic::Status>>,
}

impl Asking {
    pub async fn open(daemon: &Daemon, name: &str) -> Self {
        Self::of(Frontend::open(daemon, name).await)
    }

    /// Begins a build of a client.
    pub fn of(client: Frontend) -> Self {
        let build = client.begin(&client.reference);
        Self { client, build }
    }

    /// Has a definition taken; nothing runs for that.
    pub async fn solve(&mut self, definition: pb::Definition) -> Result<String, tonic::Status> {
        Ok(self.result_of(definition).await?.id)
    }

    pub async fn result_of(&mut self, definition: pb::Definition) -> Result<Ref, tonic::Status> {
        let request = frontend::SolveRequest { definition: Some(definition), ..frontend::SolveRequest::default() };
        let request = self.client.call(request);
        let solved = self.client.bridge.solve(request).await?.into_inner().result.unwrap_or_default();
        match solved.result {
            Some(result::Result::Ref(result)) => Ok(result),
            other => panic!("expected one result, got {other:?}"),
        }
    }

    pub async fn evaluate(&mut self, id: &str) -> Result<(), tonic::Status> {
        let request = self.client.call(EvaluateRequest { r#ref: id.to_owned() });
        self.client.bridge.evaluate(request).await.map(drop)
    }

    /// Reads a file of the result of a definition.
    pub async fn cat(&mut self, definition: pb::Definition, path: &str) -> Result<String, tonic::Status> {
        let id = self.solve(definition).await?;
        self.read(&id, path).await
    }

    pub async fn read(&mut self, id: &str, path: &str) -> Result<String, tonic::Status> {
        self.bytes(id, path).await.map(|data| String::from_utf8(data).expect("text"))
    }

    /// Reads a file of a result that may hold anything.
    pub async fn bytes(&mut self, id: &str, path: &str) -> Result<Vec<u8>, tonic::Status> {
        let request = ReadFileRequest { r#ref: id.to_owned(), file_path: path.to_owned(), ..Default::default() };
        let request = self.client.call(request);
        Ok(self.client.bridge.read_file(request).await?.into_inner().data)
    }

    /// Lists a directory of a result.
    pub async fn list(&mut self, id: &str, path: &str) -> Vec<String> {
        let request = ReadDirRequest { r#ref: id.to_owned(), dir_path: path.to_owned(), ..ReadDirRequest::default() };
        let request = self.client.call(request);
        let entries = self.client.bridge.read_dir(request).await.expect("list a directory").into_inner().entries;
        entries.into_iter().map(|entry| entry.path).collect()
    }

    /// Says permissions and owner of a path.
    pub async fn stat(&mut self, id: &str, path: &str) -> String {
        let request =
            self.client.call(StatFileRequest { r#ref: id.to_owned(), path: path.to_owned(), ..Default::default() });
        let stat = self.client.bridge.stat_file(request).await.expect("look at a path").into_inner();
        let stat = stat.stat.expect("the answer has a stat");
        format!("{:o} {}:{}", stat.mode & 0o777, stat.uid, stat.gid)
    }
}
