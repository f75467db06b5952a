package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/vmm/session"
)

// asCommand makes this test binary be hvpost: the tests run the command as a
// user does, in a process of its own.
const asCommand = "HVPOST_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A place is a directory with everything that a run of the command may write.
type cliPlace struct {
	dir string
	env []string
}

// newPlace has no apt and no QEMU on its PATH: what reaches for the network or
// boots a host fails at once, with another message.
func newPlace(t *testing.T) *cliPlace {
	t.Helper()
	p := &cliPlace{dir: t.TempDir()}
	for _, d := range []string{"tmp", "cache", "bin", "run"} {
		if err := os.Mkdir(filepath.Join(p.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.env = []string{
		asCommand + "=1", "HOME=" + p.dir, "TMPDIR=" + p.path("tmp"), "XDG_CACHE_HOME=" + p.path("cache"),
		"XDG_RUNTIME_DIR=" + p.path("run"), "PATH=" + p.path("bin"), "HVPOST_TEST_PLACE=" + p.dir,
	}
	return p
}

func (p *cliPlace) path(name string) string { return filepath.Join(p.dir, name) }

// file makes a file and returns its path.
func (p *cliPlace) file(t *testing.T, name string, b []byte) string {
	t.Helper()
	path := p.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// command is hvpost with the arguments, in the place.
func (p *cliPlace) command(args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env, cmd.Dir = p.env, p.dir
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// A cliRun is what came of a command.
type cliRun struct {
	code        int
	out, stderr string
}

func (p *cliPlace) run(t *testing.T, args ...string) cliRun {
	t.Helper()
	var out, stderr bytes.Buffer
	cmd := p.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cliRun{cmd.ProcessState.ExitCode(), out.String(), stderr.String()}
}

// files lists what a run left in the directories of temporary files and of
// the cache: regular files, without the empty ones that locks are.
func (p *cliPlace) files(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, d := range []string{"tmp", "cache", "run"} {
		err := filepath.WalkDir(p.path(d), func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if st, err := e.Info(); err == nil && !e.IsDir() && st.Size() > 0 || e.IsDir() && strings.HasPrefix(e.Name(), "hvpost-") {
				found = append(found, strings.TrimPrefix(path, p.dir))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// processes lists those that carry the place in their environment: the
// children of a run, whatever group or parent they have now.
func (p *cliPlace) processes() []string {
	var found []string
	envs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range envs {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte("HVPOST_TEST_PLACE="+p.dir+"\x00")) {
			found = append(found, f)
		}
	}
	return found
}

// refused checks all that a refusal owes: the exit code, one line that names
// what is wrong, nothing on stdout, nothing left behind.
func (p *cliPlace) refused(t *testing.T, r cliRun, before []string, names ...string) {
	t.Helper()
	if r.code != codeError {
		t.Errorf("exit code %d, want %d", r.code, codeError)
	}
	line, more, found := strings.Cut(r.stderr, "\n")
	if !found || more != "" || !strings.HasPrefix(line, "hvpost: ") {
		t.Errorf("stderr is not one line of hvpost's: %q", r.stderr)
	}
	for _, n := range names {
		if !strings.Contains(line, n) {
			t.Errorf("%q does not name %q", line, n)
		}
	}
	if r.out != "" {
		t.Errorf("stdout: %q", r.out)
	}
	if after := p.files(t); strings.Join(after, " ") != strings.Join(before, " ") {
		t.Errorf("left behind: %v, before: %v", after, before)
	}
	if ps := p.processes(); len(ps) > 0 {
		t.Errorf("processes left: %v", ps)
	}
}

// hasResult checks that a result file tells of the error.
func hasResult(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Errorf("result: %v", err)
		return
	}
	var res session.Result
	if err := json.Unmarshal(b, &res); err != nil || res.Reason != session.ReasonError || res.ExitCode != codeError || res.Detail == "" || strings.Contains(res.Detail, "\n") {
		t.Errorf("result %s: %v", b, err)
	}
}

// What can be wrong with a request is found before KVM is opened and before a
// host is booted: the outcome is the same for both kinds of host.
func TestRun_BadInput(t *testing.T) {
	p := newPlace(t)
	good := p.file(t, "good", elfKernel(elfX86, 4096))
	arm := make([]byte, 4096)
	copy(arm, "MZ")
	copy(arm[56:], "ARM\x64")
	pkg := deb(t, map[string]string{"./usr/share/doc/x": "no kernel"})
	kernel := func(path string) []string { return []string{"-k", path} }
	with := func(args ...string) []string { return append([]string{"-k", good}, args...) }
	fifo := p.path("fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	unmet := p.modules(t, "unmet", "kernel/a.ko: kernel/b.ko\n", map[string]string{"kernel/a.ko": "\x7fELF"})
	corrupt := p.modules(t, "corrupt", "kernel/a.ko:\n", map[string]string{"kernel/a.ko": "this is no module"})
	packed := p.modules(t, "packed", "kernel/a.ko.xz:\n", map[string]string{"kernel/a.ko.xz": "this is no module"})

	for _, c := range []struct {
		name string
		args []string
		want []string // in the line
		// The cache may keep what was rightly derived from good parts of the
		// request: the kernel of a bad module, for instance.
		caches bool
	}{
		{name: "kernel: missing", args: kernel(p.path("no-such")), want: []string{p.path("no-such"), "no such file"}},
		{name: "kernel: not cached", args: kernel("no-such"), want: []string{"no-such", "no such file"}},
		{name: "kernel: empty", args: kernel(p.file(t, "empty", nil)), want: []string{p.path("empty"), "empty"}},
		{name: "kernel: directory", args: kernel(p.path("tmp")), want: []string{p.path("tmp"), "no kernel in this directory"}},
		{name: "kernel: FIFO", args: kernel(fifo), want: []string{fifo, "not a regular file"}},
		{name: "kernel: text", args: kernel(p.file(t, "text", bytes.Repeat([]byte("text\n"), 1000))), want: []string{p.path("text"), "not a kernel"}},
		{name: "kernel: script", args: kernel(p.file(t, "script", []byte("#!/bin/sh\n"))), want: []string{p.path("script"), "script"}},
		{name: "kernel: arm64 image", args: kernel(p.file(t, "arm", arm)), want: []string{p.path("arm"), "arm64"}},
		{name: "kernel: arm64 ELF", args: kernel(p.file(t, "arm-elf", elfKernel(elfARM64, 4096))), want: []string{p.path("arm-elf"), "arm64"}},
		{name: "kernel: bzImage without end", args: kernel(p.file(t, "short-bz", append(bzImageHead(1<<20), 1, 2, 3))), want: []string{p.path("short-bz"), "cut short"}},
		{name: "kernel: bzImage header alone", args: kernel(p.file(t, "head-bz", bzImageHead(1 << 20)[:0x240])), want: []string{p.path("head-bz"), "cut short"}},
		{name: "kernel: ELF without end", args: kernel(p.file(t, "short-elf", elfKernel(elfX86, 4096)[:130])), want: []string{p.path("short-elf"), "cut short"}},
		{name: "kernel: ELF header alone", args: kernel(p.file(t, "head-elf", elfKernel(elfX86, 4096)[:60])), want: []string{p.path("head-elf"), "cut short"}},
		{name: "kernel: deb without one", args: kernel(p.file(t, "none.deb", pkg)), want: []string{p.path("none.deb"), "without a kernel"}},
		{name: "kernel: deb without end", args: kernel(p.file(t, "short.deb", pkg[:len(pkg)-20])), want: []string{p.path("short.deb"), "truncated"}},
		{name: "kernel: deb that is none", args: kernel(p.file(t, "text.deb", []byte("text"))), want: []string{p.path("text.deb"), "not a Debian package"}},
		{name: "kernel: deb missing", args: kernel(p.path("missing.deb")), want: []string{p.path("missing.deb"), "no such file"}},
		{name: "kernel: no such series", args: kernel("debian:99.9"), want: []string{"debian:99.9", "no apt-get"}},
		{name: "kernel: bad series", args: kernel("debian:x"), want: []string{"debian:x", "series"}},
		{name: "kernel: none at all", args: nil, want: []string{"no kernel", "kernel fetch"}},
		{name: "kernel: larger than memory", args: append(kernel(p.file(t, "large", elfKernel(elfX86, 100<<20))), "-m", "64M"), want: []string{p.path("large"), "64 MiB", "-m"}, caches: true},
		{name: "kernel: protocol it has not", args: with("--boot", "pvh"), want: []string{good, "PVH"}, caches: true},
		{name: "kernel: bzimage wanted, ELF given", args: with("--boot", "bzimage"), want: []string{good, "--boot=bzimage"}, caches: true},

		{name: "initrd: missing", args: with("-i", p.path("no-such")), want: []string{"--initrd", p.path("no-such")}, caches: true},
		{name: "initrd: directory", args: with("-i", p.path("tmp")), want: []string{"--initrd", p.path("tmp")}, caches: true},
		{name: "initrd: FIFO", args: with("-i", fifo), want: []string{"--initrd", fifo}, caches: true},
		{name: "initrd: too large", args: with("-m", "128M", "-i", p.sparse(t, "initrd", 1<<30)), want: []string{p.path("initrd"), "does not fit", "128 MiB"}, caches: true},
		{name: "command line: too long", args: with("-a", strings.Repeat("x", 2047)), want: []string{"command line", "2047"}, caches: true},
		{name: "command line: replaced, too long", args: with("--cmdline", strings.Repeat("x ", 1100)), want: []string{"command line", "2047"}, caches: true},

		{name: "memory: too small", args: with("-m", "63M"), want: []string{"memory", "63 MiB", "64 MiB"}},
		{name: "memory: none", args: with("-m", "0"), want: []string{"--memory"}},
		{name: "memory: no size", args: with("-m", "lots"), want: []string{"--memory", "lots"}},
		{name: "memory: negative", args: with("-m", "-1"), want: []string{"--memory", "-1"}},
		{name: "memory: too large", args: with("-m", "9999T"), want: []string{"memory", "too much"}},
		{name: "CPUs: none", args: with("-c", "0"), want: []string{"--cpus", "1 to 64"}},
		{name: "CPUs: too many", args: with("--cpus", "65"), want: []string{"--cpus", "1 to 64"}},
		{name: "CPUs: no number", args: with("--cpus", "two"), want: []string{"--cpus", "two"}},

		{name: "flag: unknown", args: with("--bogus"), want: []string{"--bogus"}},
		{name: "flag: unknown letter", args: with("-Z"), want: []string{"-Z"}},
		{name: "flag: without value", args: []string{"--kernel"}, want: []string{"--kernel"}},
		{name: "vmbus version", args: with("--vmbus-max-version", "9.9"), want: []string{"--vmbus-max-version", "9.9"}},
		{name: "boot protocol", args: with("--boot", "uefi"), want: []string{"boot", "uefi"}},
		{name: "console", args: with("--console", "foo"), want: []string{"--console", "foo"}},
		{name: "host", args: with("--host", "mars"), want: []string{"--host", "mars"}},
		{name: "timeout: no duration", args: with("--timeout", "abc"), want: []string{"--timeout", "abc"}},
		{name: "timeout: negative", args: with("--timeout", "-5s"), want: []string{"timeout", "-5s"}},
		{name: "boot timeout: negative", args: with("--boot-timeout", "-5s"), want: []string{"boot timeout", "-5s"}},
		{name: "env without name", args: with("--env", "=x"), want: []string{"--env", "=x"}},
		{name: "terminal and none", args: with("--tty", "--no-tty"), want: []string{"--tty", "--no-tty"}},

		{name: "file: missing", args: with("--file", "/nonexistent"), want: []string{"/nonexistent"}, caches: true},
		{name: "file: guest path", args: with("--file", good+":relative"), want: []string{"relative"}, caches: true},
		{name: "console log: no directory", args: with("--console-log", "/nonexistent/log"), want: []string{"--console-log", "/nonexistent/log"}},
		{name: "console log: directory", args: with("--console-log", p.path("tmp")), want: []string{"--console-log", p.path("tmp")}},

		{name: "module: kernel without modules", args: with("--module", "nosuch"), want: []string{"no modules directory"}, caches: true},
		{name: "module: unknown", args: append(kernel(unmet), "--module", "nosuch"), want: []string{"nosuch", "no such module"}, caches: true},
		{name: "module: unmet dependency", args: append(kernel(unmet), "--module", "a"), want: []string{"module a", "a needs b"}, caches: true},
		{name: "module: not one", args: append(kernel(corrupt), "--module", "a"), want: []string{"a.ko", "module"}, caches: true},
		{name: "module: damaged compression", args: append(kernel(packed), "--module", "a"), want: []string{"module a", "a.ko.xz"}, caches: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, host := range []string{"kvm", "emulated"} {
				result := p.path("result-" + host + ".json")
				args := append([]string{"run", "--host", host, "--result", result}, c.args...)
				if c.name == "flag: unknown" {
					args = append(args, "-q") // errors are printed all the same
				}
				args = append(args, "--", "true")
				if c.name == "flag: without value" {
					args = args[:len(args)-2]
				}
				if c.caches { // once for what is cached, once for the rest
					p.run(t, args...)
					os.Remove(result)
				}
				before := p.files(t)
				p.refused(t, p.run(t, args...), before, c.want...)
				for _, f := range before {
					if strings.Contains(f, "tmp") {
						t.Errorf("temporary file left: %s", f)
					}
				}
				hasResult(t, result)
				if err := os.Remove(result); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A result that has no place is an error of its own, and makes no file.
func TestRun_BadResult(t *testing.T) {
	p := newPlace(t)
	good := p.file(t, "good", elfKernel(elfX86, 4096))
	for _, path := range []string{"/nonexistent/dir/x", p.path("tmp"), good + "/x"} {
		r := p.run(t, "run", "--host", "kvm", "-k", good, "--result", path, "--", "true")
		p.refused(t, r, nil, "--result", path)
	}
	// Nothing may be made of a request that is refused later.
	p.run(t, "run", "--console-log", p.path("log"), "-k", good, "-m", "1M", "--", "true")
	if _, err := os.Stat(p.path("log")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("console log of a run that never was: %v", err)
	}
}

// Programs look for the result whatever was wrong, if the flag can be found.
func TestRun_ResultOfBadFlags(t *testing.T) {
	p := newPlace(t)
	result := p.path("r.json")
	for _, args := range [][]string{
		{"--result", result, "--bogus"},
		{"--result=" + result, "--cpus=two"},
		{"--cpus", "two", "--result", result},
		{"--timeout=x", "-q", "--tty", "--result=" + result, "sh"},
	} {
		p.refused(t, p.run(t, append([]string{"run"}, args...)...), nil)
		hasResult(t, result)
		os.Remove(result)
	}
	// What follows an unknown flag may be the command: its files are not ours.
	p.refused(t, p.run(t, "run", "--bogus", "sh", "--result", result), nil, "--bogus")
	if _, err := os.Stat(result); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("result: %v", err)
	}
}

// A result goes through to a stream and replaces a file.
func TestRun_ResultToStreams(t *testing.T) {
	p := newPlace(t)
	bad := func(path string) []string {
		return []string{"run", "--host", "kvm", "--result", path, "-m", "0", "--", "true"}
	}
	var res session.Result
	r := p.run(t, bad("/dev/stdout")...)
	if err := json.Unmarshal([]byte(r.out), &res); err != nil || r.code != codeError || res.Reason != session.ReasonError {
		t.Errorf("/dev/stdout: %q, %d, %v", r.out, r.code, err)
	}

	// Into a file that others write too: it must not begin anew.
	out, err := os.Create(p.path("out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	out.WriteString("before\n")
	cmd := p.command(bad("/dev/stdout")...)
	cmd.Stdout = out
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != codeError {
		t.Error(err)
	}
	out.WriteString("after\n")
	b, err := os.ReadFile(p.path("out"))
	if err != nil || !strings.HasPrefix(string(b), "before\n{") || !strings.HasSuffix(string(b), "}\nafter\n") {
		t.Errorf("stdout is a file: %q, %v", b, err)
	}

	fifo := p.path("fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte, 1)
	go func() {
		b, _ := os.ReadFile(fifo)
		got <- b
	}()
	if r := p.run(t, bad(fifo)...); r.code != codeError {
		t.Errorf("FIFO: %+v", r)
	}
	select {
	case b := <-got:
		if err := json.Unmarshal(b, &res); err != nil {
			t.Errorf("FIFO: %q, %v", b, err)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing came out of the FIFO")
	}
	if st, err := os.Lstat(fifo); err != nil || st.Mode()&fs.ModeNamedPipe == 0 {
		t.Errorf("the FIFO was replaced: %v, %v", st, err)
	}

	// A link stays a link.
	target, link := p.file(t, "target", []byte("old")), p.path("link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	p.run(t, bad(link)...)
	hasResult(t, target)
	if st, err := os.Lstat(link); err != nil || st.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link was replaced: %v, %v", st, err)
	}
	if r := p.run(t, bad("/dev/null")...); r.code != codeError || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("/dev/null: %+v", r)
	}
}

// A tool that fails with many words makes one line, and -q does not hide it.
func TestRun_FetchFails_OneLine(t *testing.T) {
	p := newPlace(t)
	for _, name := range []string{"apt-get", "apt-cache"} {
		path := p.file(t, "bin/"+name, []byte("#!/bin/sh\nfor i in 1 2 3; do echo \"E: cannot resolve $i\" >&2; done\nexit 100\n"))
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.refused(t, p.run(t, "run", "-q", "--host", "kvm", "-k", "debian:99.9", "--", "true"), nil, "debian:99.9")
	r := p.run(t, "kernel", "fetch", "debian:99.9")
	if r.code != codeError || !strings.Contains(r.stderr, "debian:99.9") {
		t.Errorf("kernel fetch: %+v", r)
	}
}

// The other subcommands refuse what they do not know in one line, too.
func TestCommands_BadUse(t *testing.T) {
	p := newPlace(t)
	for _, args := range [][]string{
		{"runn"}, {"--bogus"}, {"doctor", "extra"}, {"doctor", "--bogus"}, {"kernel", "fetch"}, {"kernel", "rm", "no-such"},
		{"kernel", "path", "/nonexistent"}, {"host", "exec"}, {"host", "up", "-m", "lots"}, {"version", "extra"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			p.refused(t, p.run(t, args...), nil)
		})
	}
}

// A signal while the request is prepared ends that, too: with what it
// started, and with a result.
func TestRun_StoppedWhilePreparing(t *testing.T) {
	for _, host := range []string{"kvm", "emulated"} {
		p := newPlace(t)
		up := p.path("up")
		if err := unix.Mkfifo(up, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"apt-get", "apt-cache"} {
			path := p.file(t, "bin/"+name, []byte("#!/bin/sh\necho up >"+up+"\nexec /bin/sleep 600\n"))
			if err := os.Chmod(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		result := p.path("r.json")
		var stderr bytes.Buffer
		cmd := p.command("run", "--host", host, "--result", result, "-k", "debian:99.9", "--", "true")
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		if _, err := os.ReadFile(up); err != nil { // until the tool runs
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		timer.Stop()
		if code := cmd.ProcessState.ExitCode(); code != 128+int(unix.SIGTERM) || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("%s: exit code %d, stderr %q", host, code, stderr.String())
		}
		var res session.Result
		b, err := os.ReadFile(result)
		if err == nil {
			err = json.Unmarshal(b, &res)
		}
		if err != nil || res.Reason != session.ReasonStopped || res.StopSignal != int(unix.SIGTERM) {
			t.Errorf("%s: result %s, %v", host, b, err)
		}
		if ps := p.processes(); len(ps) > 0 {
			t.Errorf("%s: processes left: %v", host, ps)
		}
		if fs := p.files(t); len(fs) > 0 {
			t.Errorf("%s: files left: %v", host, fs)
		}
	}
}
