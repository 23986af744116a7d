#!/usr/bin/env bash
# GCC 12.2.0 (Debian 12, x86-64), -O2: calls of a function whose only effect is __builtin_prefetch.
#
# Expected: the calls stay, since prefetching is what the function is for; noinline above all keeps a call a call.
# Seen: the function is compiled, prefetch instructions and all, and nobody calls it. GCC's summary of what a function
# reads and writes (-fipa-modref) counts a prefetch as nothing, so the calls are dead. noinline does not hold them,
# -Wall and -Wextra are silent, -fno-ipa-pure-const changes nothing. A loop in the caller, or always_inline, stays.
# Who moves a kernel's prefetches into a helper measures afterwards that "prefetching does not help".
set -euo pipefail
command -v gcc > /dev/null || { echo "wants gcc" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/prefetch.c" <<'SOURCE'
#define LOOP for (long i = 0; i < n; i += 16) __builtin_prefetch(p + i)
__attribute__((noinline)) void helper(const float* p, long n) { LOOP; }
static inline __attribute__((always_inline)) void inlined(const float* p, long n) { LOOP; }
void calls_helper(const float* p, long n) { helper(p, n); }
void calls_inlined(const float* p, long n) { inlined(p, n); }
SOURCE

body_of() { # FUNCTION FLAGS...: its instructions, without its name
  local name=$1
  shift
  gcc -O2 -fcf-protection=none "$@" -S -o - "$folder/prefetch.c" |
    awk -v label="$name:" '$1 == label { inside = 1; next } inside && $1 ~ /^\.size/ { exit } inside && $1 !~ /^\./'
}

warnings=$(gcc -O2 -Wall -Wextra -c -o /dev/null "$folder/prefetch.c" 2>&1)
test -z "$warnings" || { echo "the behavior has changed: GCC warns: $warnings"; exit 1; }
for name in helper calls_helper; do echo "$name:" && body_of "$name"; done
body_of helper | grep -q prefetch
body_of calls_inlined | grep -q prefetch
test "$(body_of calls_helper -fno-ipa-pure-const)" = "$(body_of calls_helper)"
! body_of calls_helper | grep -qE 'prefetch|call|jmp' || { echo "the behavior has changed: the call is there"; exit 1; }
body_of calls_helper -fno-ipa-modref | grep -qE 'call|jmp' || { echo "another cause: it has changed"; exit 1; }
echo "calls_helper returns at once; with -fno-ipa-modref it calls helper. gcc $(gcc -dumpfullversion)"
