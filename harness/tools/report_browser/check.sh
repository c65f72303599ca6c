#!/usr/bin/env bash
# Opens a page of `aqlm report` in headless Chromium. Fails on any message in the browser's console, and when a
# click on a heading does not sort its table.
#
#   check.sh PAGE.html           only the checks
#   check.sh PAGE.html SHOTS     also light.png, dark.png and print.pdf in the folder SHOTS
#
# Debian's package `chromium` is enough; CHROMIUM names another one. Exit code 77: there is no Chromium.
set -euo pipefail

page=$(realpath "$1")
shots=${2:-}
chromium=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
if [ -z "$chromium" ]; then
    echo "waived: no chromium on PATH"
    exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# open NAME ARGUMENTS...: one start of the browser, with a profile of its own; its messages go to NAME.log.
open() {
    local name=$1
    shift
    timeout 120 "$chromium" --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars \
        --user-data-dir="$folder/profile-$name" --enable-logging=stderr --virtual-time-budget=10000 "$@" \
        2>"$folder/$name.log"
}

# The page never writes to the console, so every line there is a failure.
quiet() {
    if grep -a 'CONSOLE' "$folder/$1.log"; then
        echo "FAIL: $page: messages in the console ($1)"
        exit 1
    fi
}

open page --dump-dom "file://$page" >"$folder/page.dom"
quiet page
grep -q '<main>' "$folder/page.dom" || { echo "FAIL: $page: no <main>"; exit 1; }

# The same page with a test at its end: every heading of every table is clicked twice.
cp "$page" "$folder/sorted.html"
cat >>"$folder/sorted.html" <<'TEST'
<script>
let clicks = 0;
for (const table of document.querySelectorAll("table")) {
  for (const heading of table.tHead.rows[0].cells) {
    for (const direction of ["ascending", "descending"]) {
      heading.querySelector("button").click();
      clicks += 1;
      const found = heading.getAttribute("aria-sort");
      if (found !== direction) throw new Error(`${table.id}: ${found} instead of ${direction}`);
      const keys = [...table.tBodies[0].rows].map((row) => row.cells[heading.cellIndex].dataset.key);
      const numbers = keys.filter((key) => key !== undefined).map(Number);
      const sign = direction === "ascending" ? 1 : -1;
      if (numbers.some((number, at) => at > 0 && sign * (number - numbers[at - 1]) < 0)) {
        throw new Error(`${table.id}: ${heading.textContent} is not sorted`);
      }
    }
  }
}
document.title = `sorted: ${clicks} clicks`;
</script>
TEST
open sorted --dump-dom "file://$folder/sorted.html" >"$folder/sorted.dom"
quiet sorted
grep -o '<title>sorted: [1-9][0-9]* clicks</title>' "$folder/sorted.dom" || { echo "FAIL: $page: the tables were not tested"; exit 1; }

if [ -n "$shots" ]; then
    mkdir -p "$shots"
    size=${SIZE:-1200,2400}
    open light --screenshot="$shots/light.png" --window-size="$size" "file://$page"
    open dark --screenshot="$shots/dark.png" --window-size="$size" --blink-settings=preferredColorScheme=0 "file://$page"
    open print --print-to-pdf="$shots/print.pdf" --no-pdf-header-footer "file://$page"
    for name in light dark print; do quiet "$name"; done
fi
echo "no message in the console"
