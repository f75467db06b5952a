package userland

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// bin is a directory with a link to this test binary for each applet.
var bin string

// TestMain makes the test binary the commands: started under the name of one,
// it is that one.
func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); !strings.HasSuffix(name, ".test") {
		if code, ok := Main(name, os.Args[1:]); ok {
			os.Exit(code)
		}
	}
	os.Exit(func() int {
		var err error
		if bin, err = os.MkdirTemp("", "hvpost-userland"); err != nil {
			panic(err)
		}
		defer os.RemoveAll(bin)
		self, err := os.Executable()
		if err != nil {
			panic(err)
		}
		for _, n := range Applets() {
			if err := os.Symlink(self, filepath.Join(bin, n)); err != nil {
				panic(err)
			}
		}
		return m.Run()
	}())
}

// result is what a command left behind.
type result struct {
	out  string
	code int
	err  string
}

// run runs sh -c script in dir with the given PATH, shell and input.
func run(t testing.TB, shell, path, dir, script, stdin string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, shell, "-c", script)
	// What the script left running must not keep its output open for ever.
	cmd.WaitDelay = time.Second
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + path, "HOME=/", "LC_ALL=C", "TZ=UTC", "USER=root", "GORACE=atexit_sleep_ms=0"}
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var ee *exec.ExitError
	if ctx.Err() != nil {
		t.Errorf("%s -c %q does not end", shell, script)
	} else if err != nil && !errors.As(err, &ee) && !errors.Is(err, exec.ErrWaitDelay) {
		t.Fatal(err)
	}
	return result{out.String(), cmd.ProcessState.ExitCode(), errs.String()}
}

// fixture fills a directory with files to work on.
func fixture(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{
		"a":         "alpha\nbeta\ngamma\ndelta\n",
		"b":         "beta\nBeta\nbeta\nalpha\nomega",
		"empty":     "",
		"n":         "10\n9\n2\n-3\n2.5\n100\n0\n2\n",
		"csv":       "x:1:red\ny:2:green\nz\nw:10:blue:extra\n",
		"ws":        "  one  two\tthree\nfour five   six\n\n\n  seven\n",
		"bin":       "\x00\x01\x02binary\xff\xfe\n\x7f\x80tail",
		"d/x.txt":   "in d\n",
		"d/e/y.txt": "in e\n",
		"d/e/z.c":   "int main(void) { return 0; }\n",
		"long":      strings.Repeat("0123456789", 3000) + "\n" + strings.Repeat("line\n", 5000),
	}
	for n, s := range files {
		p := filepath.Join(dir, n)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
		// A fixed time, so that two copies of the directory are the same.
		at := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
		if err := os.Chtimes(p, at, at); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(filepath.Join(dir, "d/x.txt"), 0o754)
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	os.Symlink("nowhere", filepath.Join(dir, "dangling"))
	return dir
}

const hostPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// likeHost runs each script once with the host's commands and once with ours,
// in equal directories and with the same shell, and compares the output and
// the exit code. A script whose command the host lacks is told and left out.
func likeHost(t *testing.T, scripts []string) {
	t.Helper()
	for i, s := range scripts {
		if left(i) {
			continue
		}
		t.Run(s, func(t *testing.T) {
			t.Parallel()
			for _, w := range strings.FieldsFunc(s, func(r rune) bool { return !isAlpha(byte(r)) && !isDigit(byte(r)) && r != '[' }) {
				if lookup(w) != nil && slices.Contains([]string{"free", "ps", "sysctl", "uptime", "hexdump", "stat", "pidof"}, w) {
					if _, err := exec.LookPath(w); err != nil {
						t.Skipf("LOUD: the host has no %s to compare with", w)
					}
				}
			}
			want := run(t, "/bin/sh", hostPath, fixture(t), s, "from\nstdin\n")
			got := run(t, "/bin/sh", bin+":"+hostPath, fixture(t), s, "from\nstdin\n")
			if got.out != want.out || got.code != want.code {
				t.Errorf("exit %d, host %d\n--- ours\n%s--- host\n%s--- our stderr\n%s--- host stderr\n%s", got.code, want.code, clip(got.out), clip(want.out), got.err, want.err)
			}
			if (got.err == "") != (want.err == "") {
				// The shell around tells of killed jobs, if it has the time.
				if !strings.Contains(got.err+want.err, "Killed") && !strings.Contains(got.err+want.err, "Terminated") {
					t.Errorf("stderr %q, host %q", got.err, want.err)
				}
			}
		})
	}
}

// left reports whether script i is left out: with -short, and under the race
// detector, a part of them runs.
func left(i int) bool {
	n := every
	if testing.Short() {
		n *= 8
	}
	return i%n != 0
}

func clip(s string) string {
	if len(s) > 2000 {
		return s[:2000] + "...\n"
	}
	return s
}

func TestAppletsAreSorted(t *testing.T) {
	names := Applets()
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("not sorted and unique: %v", names)
	}
	if _, ok := Main("no-such-applet", nil); ok {
		t.Error("an unknown name was taken")
	}
}

// TestUnknownOptionIsAnError: an option that is not understood must not be
// passed over.
func TestUnknownOptionIsAnError(t *testing.T) {
	free := []string{"[", "test", "echo", "printf", "expr", "true", "false", "yes", "sleep", "usleep", "whoami", "clear", "reset", "lsmod", "nohup"}
	for i, n := range Applets() {
		if left(i) || slices.Contains(free, n) {
			continue
		}
		for _, o := range []string{"-@", "--no-such-option"} {
			if (n == "shutdown" || n == "halt" || n == "poweroff" || n == "reboot") && os.Getpid() == 1 {
				continue
			}
			r := run(t, "/bin/sh", bin, "/", n+" "+o+" </dev/null", "")
			if r.code == 0 {
				t.Errorf("%s %s: exit 0, %q", n, o, r.out)
			}
		}
	}
}
