//! End-to-end tests of builds: the real binary, real bases, a real registry.

mod support;

use support::Kiln;

#[test]
fn the_command_answers_with_its_version() {
    let kiln = Kiln::new();
    kiln.command(["version"]).output().expect_code(0).expect_stdout(&["0.1.0"]);
}
