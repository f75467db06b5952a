package emuhost

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"default": true, "a": true, "once-12-3": true, "ci.1_x": true, strings.Repeat("a", 40): true,
		"": false, ".": false, "..": false, "a/b": false, "A": false, "-x": false, strings.Repeat("a", 41): false, "a\n": false, "a,b": false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	ctx := context.Background()
	t.Setenv(insideVar, "")
	base := filepath.Join(t.TempDir(), "run")
	kernel := func(context.Context) (KernelFiles, error) {
		return KernelFiles{}, errors.New("no such package; fetch one")
	}
	for _, tc := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"name", Config{Name: "A"}, "emulated host name"},
		{"memory", Config{MemoryMiB: 100}, "at least 512"},
		{"no QEMU", Config{QEMU: "no-such-qemu", Kernel: kernel}, "apt-get install qemu-system-x86"},
		{"QEMU of another kind", Config{QEMU: "true", Kernel: kernel}, "--version says"},
		{"no kernel", Config{QEMU: fakeQEMU(t), Kernel: kernel}, "fetch one"},
		{"kernel that is not there", Config{QEMU: fakeQEMU(t), Kernel: func(context.Context) (KernelFiles, error) {
			return KernelFiles{Vmlinuz: "/nonexistent/vmlinuz"}, nil
		}}, "/nonexistent/vmlinuz"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.cfg.RunDir = base
			_, err := Up(ctx, tc.cfg)
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, tc.want)
			}
			if es, err := os.ReadDir(base); err != nil && !errors.Is(err, os.ErrNotExist) || len(es) != 0 {
				t.Errorf("left behind: %v, %v", es, err)
			}
		})
	}
	t.Run("inside", func(t *testing.T) {
		t.Setenv(insideVar, "default")
		if _, err := Up(ctx, Config{RunDir: base}); !errors.Is(err, ErrInside) {
			t.Errorf("got %v, want %v", err, ErrInside)
		}
	})
	t.Run("not up", func(t *testing.T) {
		if err := Down(ctx, Config{RunDir: base}); !errors.Is(err, ErrNotUp) {
			t.Errorf("Down: %v, want %v", err, ErrNotUp)
		}
		if _, err := Get(ctx, Config{RunDir: base}); !errors.Is(err, ErrNotUp) {
			t.Errorf("Get: %v, want %v", err, ErrNotUp)
		}
		if l, err := List(ctx, Config{RunDir: base}); err != nil || len(l) != 0 {
			t.Errorf("List: %v, %v", l, err)
		}
	})
	t.Run("directory of others", func(t *testing.T) {
		open := filepath.Join(t.TempDir(), "open")
		if err := os.Mkdir(open, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := Up(ctx, Config{RunDir: open}); err == nil || !strings.Contains(err.Error(), "not private") {
			t.Errorf("got %v", err)
		}
	})
}

func fakeQEMU(t *testing.T) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(p, []byte("#!/bin/sh\necho QEMU emulator version 7.2.0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestLockHammer has goroutines take and release one lock, which removes its file each time: never two at once.
func TestLockHammer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var holders atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				l, err := waitLock(context.Background(), path)
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d hold the lock", n)
				}
				holders.Add(-1)
				l.unlock()
			}
		})
	}
	wg.Wait()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
}

func TestWaitLockContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l, err := tryLock(path)
	if err != nil || l == nil {
		t.Fatal(l, err)
	}
	if l2, err := tryLock(path); l2 != nil || err != nil {
		t.Errorf("second tryLock: %v, %v", l2, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := waitLock(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	l.unlock()
	l, err = waitLock(context.Background(), path) // behind the one that gave up
	if err != nil {
		t.Fatal(err)
	}
	l.unlock()
}

// TestSweep removes private instances of dead processes only.
func TestSweep(t *testing.T) {
	base := t.TempDir()
	for _, n := range []string{"once-1-1", "once-2-2", "default"} {
		if err := os.MkdirAll(instance{base, n}.xfer(), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	held, err := tryLock(instance{base, "once-2-2"}.lock())
	if err != nil {
		t.Fatal(err)
	}
	defer held.unlock()
	sweep(base)
	got, err := names(base)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"default", "once-2-2"}, got); diff != "" {
		t.Errorf("instances (-want +got):\n%s", diff)
	}
}

func TestUnsign(t *testing.T) {
	sign := func(body string, sig string, size int) []byte {
		b := []byte(body + sig)
		b = append(b, make([]byte, 8)...)
		b = binary.BigEndian.AppendUint32(b, uint32(size))
		return append(b, "~Module signature appended~\n"...)
	}
	for _, tc := range []struct {
		name string
		in   []byte
		want string
	}{
		{"unsigned", []byte("\x7fELF body"), "\x7fELF body"},
		{"signed", sign("\x7fELF body", "SIG", 3), "\x7fELF body"},
		{"length too big", sign("ab", "SIG", 6), string(sign("ab", "SIG", 6))},
		{"length huge", sign("ab", "SIG", 1<<32-1), string(sign("ab", "SIG", 1<<32-1))},
		{"trailer alone", []byte("~Module signature appended~\n"), "~Module signature appended~\n"},
		{"nothing", nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := unsign(tc.in); string(got) != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestReadModule(t *testing.T) {
	dir := t.TempDir()
	const body = "\x7fELF and the rest of a module"
	pack := map[string]func(io.Writer) io.WriteCloser{
		"m.ko.gz":  func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		"m.ko.xz":  func(w io.Writer) io.WriteCloser { z, _ := xz.NewWriter(w); return z },
		"m.ko.zst": func(w io.Writer) io.WriteCloser { z, _ := zstd.NewWriter(w); return z },
		"m.ko":     func(w io.Writer) io.WriteCloser { return nopCloser{w} },
	}
	for name, f := range pack {
		var b bytes.Buffer
		w := f(&b)
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readModule(p); err != nil || string(got) != body {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		// Cut, and of another format.
		for _, bad := range []string{string(b.Bytes()[:3]), "not a module"} {
			if err := os.WriteFile(p, []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := readModule(p); err == nil || !strings.Contains(err.Error(), p) {
				t.Errorf("%s with %q: %v", name, bad, err)
			}
		}
	}
	if _, err := readModule(filepath.Join(dir, "none.ko")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// entry is one of a cpio archive, as the kernel reads it.
type entry struct {
	Name         string
	Mode         uint64
	Major, Minor uint64
	Body         string
}

func readCpio(t *testing.T, b []byte) []entry {
	t.Helper()
	var es []entry
	pos := 0
	take := func(n int) string {
		if n > len(b)-pos {
			t.Fatalf("archive ends at %d, want %d more", pos, n)
		}
		s := string(b[pos : pos+n])
		pos += n
		return s
	}
	for {
		h := take(110)
		if h[:6] != "070701" {
			t.Fatalf("no magic at %d: %q", pos-110, h)
		}
		field := func(i int) uint64 {
			v, err := strconv.ParseUint(h[6+8*i:14+8*i], 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		name := take(int(field(11)))
		take(-pos & 3)
		e := entry{Name: strings.TrimSuffix(name, "\x00"), Mode: field(1), Major: field(9), Minor: field(10)}
		e.Body = take(int(field(6)))
		take(-pos & 3)
		if e.Name == "TRAILER!!!" {
			return es
		}
		es = append(es, e)
	}
}

func TestWriteInitrd(t *testing.T) {
	dir := t.TempDir()
	for name, body := range map[string]string{"kvm-amd.ko": "\x7fELF kvm", "9p.ko": "\x7fELF 9"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	self := staticELF(t, dir)
	out := filepath.Join(dir, "initrd")
	if err := writeInitrd(out, self, []string{filepath.Join(dir, "kvm-amd.ko"), filepath.Join(dir, "9p.ko")}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	body, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	want := []entry{
		{"dev", 0o040755, 0, 0, ""},
		{"dev/console", 0o020600, 5, 1, ""},
		{"init", 0o100755, 0, 0, string(body)},
		{"modules", 0o040755, 0, 0, ""},
		{"modules/00-kvm-amd.ko", 0o100644, 0, 0, "\x7fELF kvm"},
		{"modules/01-9p.ko", 0o100644, 0, 0, "\x7fELF 9"},
	}
	if diff := cmp.Diff(want, readCpio(t, b)); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
}

// staticELF writes the smallest file that debug/elf takes for an executable without an interpreter.
func staticELF(t *testing.T, dir string) string {
	t.Helper()
	h := make([]byte, 64)
	copy(h, "\x7fELF\x02\x01\x01")
	h[16], h[18], h[20] = 2, 62, 1 // executable, x86-64, version
	h[52] = 64                     // header size
	p := filepath.Join(dir, "static")
	if err := os.WriteFile(p, append(h, "odd"...), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCheckStatic(t *testing.T) {
	if err := checkStatic(staticELF(t, t.TempDir())); err != nil {
		t.Error(err)
	}
	if err := checkStatic("/bin/sh"); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("/bin/sh: %v", err)
	}
	if err := checkStatic("/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func TestQEMUArgs(t *testing.T) {
	args := strings.Join(qemuArgs(serveConfig{Base: "/run/a,b", Name: "x", Kernel: "/k,1", MemoryMiB: 777, Append: "more words", TSCKHz: 2600000, Firmware: "/fw"}), "\n") + "\n"
	for _, want := range []string{
		"-smp\n1\n", "-m\n777\n", "-kernel\n/k,1\n", "path=/run/a,,b/x/xfer\n", "-initrd\n/run/a,b/x/initrd\n", "-bios\n/fw\n",
		"readonly=on,path=/\n", " tsc_early_khz=2600000 more words\n", "hvpost.role=emuhost",
		fmt.Sprintf("addr=0xb.7,multifunction=off,mount_tag=root%d\n", Views-1),
	} {
		if !strings.Contains(args, want) {
			t.Errorf("no %q in:\n%s", want, args)
		}
	}
	if n := strings.Count(args, "virtio-9p-pci,fsdev=root"); n != Views {
		t.Errorf("%d views, want %d", n, Views)
	}
}

func TestTSC(t *testing.T) {
	khz := tscKHz()
	if khz == 0 {
		t.Skip("no time-stamp counter that QEMU would pass on")
	}
	if khz < 100_000 || khz > 20_000_000 {
		t.Fatalf("%d kHz is no frequency of a processor", khz)
	}
	// 500 ppm is what NTP can correct; both measurements together get a tenth of it on a busy machine.
	if again := tscKHz(); max(khz, again)-min(khz, again) > khz/2000 {
		t.Errorf("measured %d kHz, then %d kHz", khz, again)
	}
}

func TestLogBounded(t *testing.T) {
	p := filepath.Join(t.TempDir(), "log")
	l, err := openLog(p)
	if err != nil {
		t.Fatal(err)
	}
	line := []byte(strings.Repeat("x", 999) + "\n")
	for range 5000 {
		l.Write(line)
	}
	l.Write([]byte("\x1b[31mthe end\nqemu: warning: TCG doesn't support requested feature: x\n"))
	l.Close()
	l.Write(line) // must not fail either
	var total int64
	for _, f := range []string{p, p + ".1"} {
		st, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() > maxLog {
			t.Errorf("%s has %d bytes", f, st.Size())
		}
		total += st.Size()
	}
	if total < maxLog {
		t.Errorf("only %d bytes are kept", total)
	}
}

func TestLastLines(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"three", "a\nb\n\nc\r\nd\n", "b | c | d"},
		{"remarks", "real\nx: warning: TCG doesn't support requested feature: y\n", "real"},
		{"panic", "a\n[1.0] Kernel panic - not syncing: no init\n trace\n trace\n trace\n trace\n", "[1.0] Kernel panic - not syncing: no init"},
		{"PID 1", "hvpost: client: x\nhvpost: emulated host: module kvm.ko: no\n[2.0] reboot: Power down\n", "hvpost: emulated host: module kvm.ko: no"},
		{"control characters", "a\x1b[31m\x07b\n", "a [31m b"},
		{"nothing", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := &logFile{}
			l.Write([]byte(tc.in))
			if got := l.lastLines(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
