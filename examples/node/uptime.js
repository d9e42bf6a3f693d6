const ms = require("ms");

// Says how long a number of seconds is.
exports.uptime = (seconds) => `up for ${ms(Math.round(seconds) * 1000, { long: true })}\n`;
