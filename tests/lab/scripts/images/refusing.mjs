#!/usr/bin/env node
const [command] = process.argv.slice(2);
if (command === "--version") {
  console.log("OpenClaw 0.0.78 (lab)");
} else if (command === "gateway") {
  console.error("Missing config. Run `openclaw setup` or set gateway.mode=local (or pass --allow-unconfigured).");
  process.exitCode = 78;
}
