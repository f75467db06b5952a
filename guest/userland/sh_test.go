package userland

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// TestShellLikeHost runs scripts with our shell and with the host's bash, which
// the interpreter follows; both with the host's commands.
func TestShellLikeHost(t *testing.T) {
	host, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("LOUD: the host has no bash to compare with")
	}
	for i, s := range []string{
		"echo hello", "echo $((1+2*3))", "a=1; b=$a; echo $b", "echo ${x:-default} ${x:=set} $x ${x:+alt} ${#x}", "x=abc.tar.gz; echo ${x%.*} ${x%%.*} ${x#*.} ${x##*.}",
		"for i in 1 2 3; do echo $i; done", "i=0; while [ $i -lt 3 ]; do i=$((i+1)); echo $i; done", "until false; do echo once; break; done", "for i in a b c; do [ $i = b ] && continue; echo $i; done",
		"if true; then echo y; elif false; then echo e; else echo n; fi", "case abc in a*) echo a;; *) echo other;; esac", "case x in [a-m]) echo lo;; [n-z]|q) echo hi;; esac",
		"f() { echo $1 $#; return 3; }; f a b; echo $?", "f() { local x=1; echo $x; }; x=2; f; echo $x", "echo a | cat | tr a b", "echo x >o; cat o; echo y >>o; cat <o", "cat <<E\nline $((1+1))\nE", "cat <<'E'\n$x `y`\nE", "cat <<-E\n\ttabbed\n\tE",
		"false; echo $?", "true && echo a || echo b", "false && echo a || echo b", "! true; echo $?", "exit 7", "(exit 5); echo $?", "{ echo g; }", "set -e; false; echo no", "set -e; if false; then :; fi; echo yes", "sh -c 'f() { echo $0; }; f; echo ${0##*/}' /x/name", "sh script0", "set -- a 'b c' d; echo $# $2; shift; echo $1; for a; do echo $a; done", "echo \"$@\"", "set -- 1 2; echo \"$*\"",
		"echo $(echo sub $(echo nested))", "echo `echo back`", "x=$(false); echo $?", "echo '$x' \"$HOME\" \\$x", "echo 'it'\\''s'", "IFS=:; set -- $(echo a:b:c); echo $#", "printf '%s|' a 'b c'; echo", "read a b <<E\none two three\nE\necho $a-$b", "printf 'a b\\nc d\\n' | while read x y; do echo $y $x; done", "echo a >&2", "echo err 2>/dev/null >&2", "ls missing 2>&1 | grep -c missing", "eval 'echo eval'; eval x=5; echo $x", ". ./lib.sh; libf", "export A=1; sh -c 'echo $A'", "A=2 sh -c 'echo $A'; echo ${A-unset}", "unset HOME; echo ${HOME-none}", "readonly R=1; echo $R", "type cd >/dev/null && echo ok", "command -v ls >/dev/null && echo found", "command echo c", "cd /tmp && pwd", "cd missing 2>/dev/null; echo $?", "test -d d && echo dir", "[ 1 -eq 1 -a 2 -eq 2 ] && echo and", "trap 'echo bye' EXIT; echo hi", "trap 'echo bye' 0; exit 4", "missing-command 2>/dev/null; echo $?", "./noexec 2>/dev/null; echo $?", "./script.sh a b", "./shebang x", "sh script.sh q", "sh -c 'echo $0 $1' name arg", "sh -ec 'false; echo no'; echo $?", "echo 'echo from stdin; read x; echo got $x\nthe line' | sh", "wait; echo $?", "sleep 0.01 & wait; echo done", "(exit 3) & wait $!; echo $?", "umask 027; umask", "ulimit -n >/dev/null; echo $?", "kill -0 $$; echo $?", "sleep 5 & p=$!; kill $p; wait $p 2>/dev/null; echo $?", "sleep 5 & kill -9 $!; wait $! 2>/dev/null; echo $?", "while :; do sleep 0.02; done & p=$!; sleep 0.1; kill $p; wait $p 2>/dev/null; test $? -gt 128; echo $?", "trap 'echo got; exit 3' TERM; kill $$; sleep 1; echo no", "trap 'echo usr' USR1; kill -USR1 $$; echo after", "trap '' TERM; kill $$; echo survived", "trap 'echo x' INT; trap - INT; trap 'echo end' EXIT", "sleep 3 & p=$!; kill -0 $p && echo alive; kill $p", "for i in 1 2; do sleep 5 & done; kill $!; wait $! 2>/dev/null; echo $?; pkill -P $$ sleep 2>/dev/null; true",
		"echo *.sh", "echo d/*", "echo nomatch*", "echo \"*\"", "echo [ab]", "x='a b'; for w in $x; do echo $w; done; for w in \"$x\"; do echo $w; done", "printf '%d %s\\n' 1 a 2 b", "printf '%5.2f\\n' 3.14159", "printf '%b' 'a\\tb\\n'", "getopts ab: o -a -b v; echo $o; getopts ab: o -a -b v; echo $o $OPTARG", "echo ${PWD##*/} >/dev/null", "f() { f2; }; f2() { echo deep; }; f", "x=1; { x=2; }; echo $x; (x=3); echo $x", "echo a b | { read x y; echo $y; }", "false | true; echo $?", "true | false; echo $?", "if [ -z \"$zz\" ]; then echo empty; fi", "echo $?", "n=5; n=$((n-1)); echo $n; echo $((n>3 ? 10 : 20))", "echo \"multi\nline\"", "a=x; case $a in x) ;; esac; echo ok", "exec echo replaced; echo no", "echo one; # comment\necho two", "alias foo=bar; echo ok", "x=5 y=6; echo $x$y", ": ${v:=init}; echo $v", "echo ${#PATH} >/dev/null; echo t", "break 2>/dev/null; echo ok", "true", "nosyntax ( 2>/dev/null; echo", "if", "echo $(exit 4); echo $?", "echo ok >d/no/such/file; echo $?", "cat <missing; echo $?", "test x = x; echo $?; test; echo $?", "hash -r; echo $?", "true &\nwait $!\necho $?", "exit", "false; exit",
	} {
		if left(i) {
			continue
		}
		t.Run(s, func(t *testing.T) {
			t.Parallel()
			var res [2]result
			for i, shell := range []string{filepath.Join(bin, "sh"), host} {
				dir := fixture(t)
				write := func(name, text string, mode os.FileMode) {
					if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
						t.Fatal(err)
					}
				}
				write("lib.sh", "libf() { echo lib; }\n", 0o644)
				write("script.sh", "echo script $# $1\n", 0o755)
				write("shebang", "#!/bin/sh\necho shebang $1\n", 0o755)
				write("script0", "echo $0 ${0#s}\n", 0o644)
				write("noexec", "echo no\n", 0o644)
				// The shell under test comes first in PATH too, so "sh" is it.
				path := hostPath
				{
					only := t.TempDir()
					if err := os.Symlink(shell, filepath.Join(only, "sh")); err != nil {
						t.Fatal(err)
					}
					path = only + ":" + hostPath
				}
				res[i] = run(t, shell, path, dir, s, "")
			}
			got, want := res[0], res[1]
			if got.out != want.out || (got.code == 0) != (want.code == 0) || got.code != want.code && want.code != 2 {
				t.Errorf("exit %d, host %d\n--- ours\n%s--- host\n%s--- our stderr\n%s--- host stderr\n%s", got.code, want.code, got.out, want.out, got.err, want.err)
			}
		})
	}
}

// TestShellExitCodes are those that differ between shells on the host.
func TestShellExitCodes(t *testing.T) {
	for s, want := range map[string]int{
		"missing-command": 127, "/etc": 126, "exit 300": 44, "kill -9 $$": 137, "sh -c 'kill -15 $$'": 143, "(": 2, "set -u; echo $nope": 1, "exit 0": 0, "cd /nope": 1,
	} {
		r := run(t, filepath.Join(bin, "sh"), bin+":"+hostPath, "/", s, "")
		if r.code == -1 {
			r.code = 137 // killed itself
		}
		if r.code != want {
			t.Errorf("%s: exit %d, want %d (%s)", s, r.code, want, r.err)
		}
	}
}

// TestShellAlone runs a script with nothing but our own commands.
func TestShellAlone(t *testing.T) {
	r := run(t, filepath.Join(bin, "sh"), bin, fixture(t), `
set -eu
sort a | head -n 2
n=$(wc -l <a)
echo "lines: $n"
find d -type f | sort | while read f; do echo "$(basename "$f") $(sha256sum "$f" | cut -c1-8)"; done
sed -n 's/a$/A/p' a | tr '\n' ' '; echo
for f in *; do [ -d "$f" ] && echo "dir $f" || true; done
i=0
while [ $i -lt 3 ]; do i=$((i + 1)); printf '%02d\n' $i; done
if grep -q gamma a; then echo found; fi
tar czf t.tgz d && mkdir out && tar xzf t.tgz -C out && cmp out/d/x.txt d/x.txt && echo same
`, "")
	want := "alpha\nbeta\nlines: 4\ny.txt 0a07b1d1\nz.c 00000000\nx.txt 5a0c8bb1\nalphA betA gammA deltA \ndir d\n01\n02\n03\nfound\nsame\n"
	// The digests are not what this test is about.
	norm := func(s string) string {
		var out []string
		for _, l := range strings.Split(s, "\n") {
			if f := strings.Fields(l); len(f) == 2 && len(f[1]) == 8 {
				l = f[0]
			}
			out = append(out, l)
		}
		return strings.Join(out, "\n")
	}
	if norm(r.out) != norm(want) || r.code != 0 {
		t.Errorf("exit %d\n%s\n%s", r.code, r.out, r.err)
	}
}

// TestInteractive types at our shell on a terminal.
func TestInteractive(t *testing.T) {
	cmd := exec.Command(filepath.Join(bin, "sh"))
	cmd.Env = []string{"PATH=" + bin, "PS1=> ", "HOME=/"}
	f, err := pty.Start(cmd)
	if err != nil {
		t.Skipf("LOUD: no terminal here: %v", err)
	}
	defer f.Close()
	var out bytes.Buffer
	seen := make(chan struct{}, 1000)
	done := make(chan struct{})
	lines := make(chan string, 1000)
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := f.Read(buf)
			lines <- string(buf[:n])
			seen <- struct{}{}
			if err != nil {
				return
			}
		}
	}()
	expect := func(want string) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for !strings.Contains(out.String(), want) {
			select {
			case s := <-lines:
				out.WriteString(s)
			case <-deadline:
				t.Fatalf("no %q in %q", want, out.String())
			}
		}
		rest := out.String()[strings.Index(out.String(), want)+len(want):]
		out.Reset()
		out.WriteString(rest)
	}
	send := func(s string) { f.Write([]byte(s)) }
	expect("> ")
	send("x=4; echo val$x\n")
	expect("val4")
	send("for i in a b; do\necho item$i\ndone\n")
	expect("itemb")
	send("if fi\n")
	expect("`fi`")
	send("echo still $?\n")
	expect("still 2")
	send("echo ready$((1+1)); sleep 20\n")
	expect("ready2")
	time.Sleep(100 * time.Millisecond)
	send("\x03")
	send("echo alive $?\n")
	expect("alive 130")
	send("exit 9\n")
	err = cmd.Wait()
	var ee *exec.ExitError
	if !errors.As(err, &ee) || ee.Sys().(syscall.WaitStatus).ExitStatus() != 9 {
		t.Errorf("%v", err)
	}
}
