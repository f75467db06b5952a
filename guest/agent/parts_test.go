package agent

import (
	"bytes"
	"compress/gzip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/guest/link"
)

func TestParseMountOptions(t *testing.T) {
	for _, tt := range []struct {
		in    string
		flags uintptr
		data  string
	}{
		{"", 0, ""},
		{"defaults", 0, ""},
		{"ro,nosuid,size=10%,mode=0755", unix.MS_RDONLY | unix.MS_NOSUID, "size=10%,mode=0755"},
		{"ro,rw", 0, ""},
		{"trans=virtio,version=9p2000.L,noatime", unix.MS_NOATIME, "trans=virtio,version=9p2000.L"},
		{"rbind", unix.MS_BIND | unix.MS_REC, ""},
		{",,nodev,", unix.MS_NODEV, ""},
	} {
		flags, data := ParseMountOptions(tt.in)
		if flags != tt.flags || data != tt.data {
			t.Errorf("%q: %#x %q", tt.in, flags, data)
		}
	}
}

// fakeVMBus builds a directory as /sys/bus/vmbus/devices.
func fakeVMBus(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for inst, d := range map[string][2]string{
		"f8b3781a-1e82-4818-a1c3-63d806ec15bb": {"ba6163d9-04a1-4d29-b605-72e2ffb1dc7f", "hv_storvsc"},
		"58f75a6d-d949-4320-99e1-a2a2576d581c": {"cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a", ""},
	} {
		p := filepath.Join(dir, inst)
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(p, "class_id"), []byte("{"+d[0]+"}\n"), 0o644)
		if d[1] != "" {
			os.Symlink("../../drivers/"+d[1], filepath.Join(p, "driver"))
		}
	}
	return dir
}

func TestVMBusDevices(t *testing.T) {
	want := []link.Device{
		{Instance: "58f75a6d-d949-4320-99e1-a2a2576d581c", Class: "cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a"},
		{Instance: "f8b3781a-1e82-4818-a1c3-63d806ec15bb", Class: "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f", Driver: "hv_storvsc"},
	}
	if diff := cmp.Diff(want, vmbusDevices(fakeVMBus(t))); diff != "" {
		t.Error(diff)
	}
	if ds := vmbusDevices("/no/such"); ds != nil {
		t.Errorf("%v", ds)
	}
}

func TestAbsent(t *testing.T) {
	dir := fakeVMBus(t)
	list := []string{
		"/dev/null", "/no/such/device",
		"{F8B3781A-1E82-4818-A1C3-63D806EC15BB}", // by instance
		"ba6163d9-04a1-4d29-b605-72e2ffb1dc7f",   // by class
		"cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a",   // there, without a driver
		"00000000-0000-0000-0000-000000000000",
	}
	want := []string{"/no/such/device", "cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a", "00000000-0000-0000-0000-000000000000"}
	if diff := cmp.Diff(want, absent(list, dir)); diff != "" {
		t.Error(diff)
	}
}

// TestWaitIsBounded: what never comes is reported after the job's time.
func TestWaitIsBounded(t *testing.T) {
	ev, err := openUevents()
	if err != nil {
		t.Skipf("LOUD: no device events here: %v", err)
	}
	defer ev.close()
	start := time.Now()
	missing := waitDevices(&link.Job{Wait: []string{"/no/such", "/dev/null"}, WaitSeconds: 1}, ev)
	if d := time.Since(start); len(missing) != 1 || d < 900*time.Millisecond || d > 5*time.Second {
		t.Errorf("%v after %v", missing, d)
	}
	if missing := waitDevices(&link.Job{Wait: []string{"/no/such"}}, nil); len(missing) != 1 {
		t.Errorf("%v", missing)
	}
}

// TestWaitSeesEvent: a device event ends the wait. Setting a network interface
// up and down in a namespace is the event that needs no hardware.
func TestWaitSeesEvent(t *testing.T) {
	ev, err := openUevents()
	if err != nil {
		t.Skipf("LOUD: no device events here: %v", err)
	}
	defer ev.close()
	// Writing to a device's uevent file replays its "add" event.
	const trigger = "/sys/devices/virtual/mem/null/uevent"
	if err := os.WriteFile(trigger, []byte("change"), 0); err != nil {
		t.Skipf("LOUD: cannot trigger a device event here: %v", err)
	}
	if !ev.next(time.Now().Add(3 * time.Second)) {
		t.Skip("LOUD: the kernel sends this namespace no device events")
	}
}

func TestUnpacker(t *testing.T) {
	image := bytes.Repeat([]byte("\x7fELF module "), 10000)
	pack := map[string]func(w *bytes.Buffer){
		"gzip": func(w *bytes.Buffer) { z := gzip.NewWriter(w); z.Write(image); z.Close() },
		"xz":   func(w *bytes.Buffer) { z, _ := xz.NewWriter(w); z.Write(image); z.Close() },
		"zstd": func(w *bytes.Buffer) { z, _ := zstd.NewWriter(w); z.Write(image); z.Close() },
	}
	for name, f := range pack {
		var b bytes.Buffer
		f(&b)
		u := unpacker(b.Bytes()[:6])
		if u == nil {
			t.Fatalf("%s not recognised", name)
		}
		got, err := u(bytes.NewReader(b.Bytes()))
		if err != nil || !bytes.Equal(got, image) {
			t.Errorf("%s: %v, equal %v", name, err, bytes.Equal(got, image))
		}
		if _, err := u(bytes.NewReader(b.Bytes()[:b.Len()/2])); err == nil {
			t.Errorf("%s: half a module unpacked", name)
		}
	}
	if unpacker(image[:6]) != nil || unpacker(nil) != nil {
		t.Error("a plain module is not packed")
	}
}

func TestLoadModuleErrors(t *testing.T) {
	p := filepath.Join(t.TempDir(), "x.ko")
	os.WriteFile(p, []byte("not a module"), 0o644)
	for _, e := range []string{p, p + " opt=1", "/no/such.ko"} {
		err := loadModule(e)
		if err == nil || !strings.Contains(err.Error(), strings.Fields(e)[0]) {
			t.Errorf("%q: %v", e, err)
		}
	}
}

func TestConfigureNetRefusesBadSettings(t *testing.T) {
	for _, i := range []link.Interface{
		{Name: "lo", Address: "10.0.0.1"}, {Name: "lo", Address: "fe80::1/64"}, {Name: "lo", Address: "x/8"},
		{Name: "an-interface-name-that-is-far-too-long"}, {Name: "no-such-if0", Address: "10.0.0.1/8"},
	} {
		if err := configureNet([]link.Interface{i}, filepath.Join(t.TempDir(), "resolv.conf")); err == nil {
			t.Errorf("%+v accepted", i)
		}
	}
}

// TestConfigureNet sets a real interface in a network namespace of its own.
func TestConfigureNet(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("LOUD: not root, no network namespace")
	}
	if os.Getenv("HVPOST_AGENT_TEST_NET") == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run", "^TestConfigureNet$", "-test.v")
		cmd.Env = append(os.Environ(), "HVPOST_AGENT_TEST_NET=1")
		cmd.SysProcAttr = netNamespace()
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := configureNet([]link.Interface{{Name: "lo", Address: "10.9.8.7/24", Gateway: "10.9.8.1", DNS: []string{"10.9.8.1", "1.1.1.1"}}}, resolv); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(resolv); string(b) != "nameserver 10.9.8.1\nnameserver 1.1.1.1\n" {
		t.Errorf("resolv.conf %q", b)
	}
	routes, _ := os.ReadFile("/proc/thread-self/net/route")
	// Destination 0, gateway 10.9.8.1 little endian, flags up|gateway.
	if !strings.Contains(string(routes), "lo\t00000000\t0108090A\t0003") {
		t.Errorf("routes:\n%s", routes)
	}
}

func netNamespace() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
}
