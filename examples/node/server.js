const http = require("http");
const { uptime } = require("./uptime");

const port = 8080;

if (process.argv.includes("--once")) {
  process.stdout.write(uptime(process.uptime() + 60));
} else if (process.argv.includes("--check")) {
  http
    .get({ port }, (response) => process.exit(response.statusCode === 200 ? 0 : 1))
    .on("error", () => process.exit(1));
} else {
  http.createServer((_, response) => response.end(uptime(process.uptime()))).listen(port);
}
