//! What a user expects of builds: results, caching, failures.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_build_runs_copies_and_tags() {
    let world = World::new();
    world.put("app.txt", "hello");
    let dockerfile = "FROM base\nWORKDIR /srv\nCOPY app.txt .\nRUN cat app.txt > out && echo printed\nCMD [\"x\"]\n";
    let first = world.build(dockerfile).await;
    first.built();
    assert_eq!(world.read("srv/out").unwrap(), "hello");
    assert!(first.printed().contains("printed"));
    assert_eq!(first.built().response["image.name"], "docker.io/library/out:latest");
    let second = world.build(dockerfile).await;
    assert_eq!(second.image(), first.image(), "the same build gives the same image");
    for step in ["WORKDIR", "COPY", "RUN"] {
        assert!(!first.cached(step) && second.cached(step), "{step}");
    }
    world.shut_down().await;
}
