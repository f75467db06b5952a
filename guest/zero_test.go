package guest

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// resident returns how many of the n bytes at a of a fresh mapping the host
// has pages for.
func resident(t *testing.T, m *Memory, a GPA, n uint64) (bytes int) {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := m.find(a)
	b := make([]byte, 8*n/PageSize)
	if _, err := f.ReadAt(b, int64(uint64(m.HostAddr(r.Base))+uint64(a-r.Base))/PageSize*8); err != nil {
		t.Fatal(err)
	}
	for i := 7; i < len(b); i += 8 {
		if b[i]>>6 != 0 { // present or swapped: Documentation/admin-guide/mm/pagemap.rst
			bytes += PageSize
		}
	}
	return bytes
}

func TestZero_TouchesNothingFresh(t *testing.T) {
	m, err := New(Region{Base: 0x10_0000, Size: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Zero(0x20_0000, 32<<20); err != nil {
		t.Fatal(err)
	}
	if n := resident(t, m, 0x20_0000, 32<<20); n != 0 {
		t.Errorf("clearing fresh pages made the host provide %d bytes", n)
	}
}

func TestZero_AllOfTheRangeAndNothingElse(t *testing.T) {
	fd, err := unix.MemfdCreate("ram", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "ram")
	defer file.Close()
	if err := file.Truncate(8 << 20); err != nil {
		t.Fatal(err)
	}
	const base, size = GPA(0x10_0000), 16 << 20
	m, err := New(Region{Base: base, Size: 8 << 20}, Region{Base: base + 8<<20, Size: 8 << 20, File: file})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	dirty := bytes.Repeat([]byte{0xA5}, size)
	got := make([]byte, size)
	for _, c := range []struct{ off, n uint64 }{
		{0, size}, {0, 0}, {1, 1}, {5 << 20, 5 << 20}, {0x1FFFFF, 4<<20 + 2}, {1 << 20, 2 << 20}, {1<<20 + 1, 2<<20 - 1}, {9 << 20, 6 << 20}, {size - 1, 1},
	} {
		if err := m.WriteAt(dirty, base); err != nil {
			t.Fatal(err)
		}
		if err := m.Zero(base+GPA(c.off), c.n); err != nil {
			t.Fatal(err)
		}
		if err := m.ReadAt(got, base); err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(dirty)
		clear(want[c.off : c.off+c.n])
		if !bytes.Equal(got, want) {
			t.Errorf("Zero of %d bytes at offset %#x cleared something else", c.n, c.off)
		}
	}
	if m.Zero(base+1, size) == nil {
		t.Error("Zero past the end was accepted")
	}
	if err := m.ReadAt(got, base); err != nil || got[1] != 0xA5 {
		t.Errorf("a refused Zero cleared something: %v", err)
	}
}

// KVM can map a huge page only where both addresses are the same within one.
func TestNew_HugePageAlignment(t *testing.T) {
	for _, base := range []GPA{0, 0x10_0000, 0x1_0000_0000, 0x20_1000} {
		m, err := New(Region{Base: base, Size: 5 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if host := m.HostAddr(base); uint64(host)%hugePage != uint64(base)%hugePage {
			t.Errorf("region at %v is mapped at %#x", base, host)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}
