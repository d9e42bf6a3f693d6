const assert = require("assert");
const { uptime } = require("./uptime");

assert.strictEqual(uptime(120.2), "up for 2 minutes\n");
