package guest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

// twoRegions is RAM with a hole: pages 0-3 and pages 8-9, and a page that
// follows the first region without a gap.
func twoRegions(t testing.TB) *Memory {
	t.Helper()
	m, err := New(Region{Base: 0x8000, Size: 2 * PageSize}, Region{Base: 0, Size: 4 * PageSize},
		Region{Base: 0x4000, Size: PageSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestNew_BadRegions_AreRefused(t *testing.T) {
	for name, rs := range map[string][]Region{
		"empty":          {{Base: 0, Size: 0}},
		"size unaligned": {{Base: 0, Size: 100}},
		"base unaligned": {{Base: 12, Size: PageSize}},
		"overlap":        {{Base: 0, Size: 2 * PageSize}, {Base: PageSize, Size: PageSize}},
		"wraps":          {{Base: ^GPA(0) &^ (PageSize - 1), Size: 2 * PageSize}},
	} {
		if m, err := New(rs...); err == nil {
			m.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestReadWrite_Edges(t *testing.T) {
	for _, c := range []struct {
		name string
		a    GPA
		n    int
		ok   bool
	}{
		{"start", 0, 16, true},
		{"across adjacent regions", 0x3FF8, 16, true},
		{"last byte", 0x9FFF, 1, true},
		{"nothing at the last byte", 0x9FFF, 0, true},
		{"over the end", 0x9FFF, 2, false},
		{"into the hole", 0x4FFF, 2, false},
		{"in the hole", 0x6000, 1, false},
		{"far away", 1 << 60, 1, false},
		{"wrapping", ^GPA(0), 2, false},
		{"whole first part", 0, 5 * PageSize, true},
		{"both parts with the hole", 0, 10 * PageSize, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := twoRegions(t)
			want := bytes.Repeat([]byte{0xA5}, c.n)
			err := m.WriteAt(want, c.a)
			if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrRange) {
				t.Fatalf("WriteAt: %v, want ok=%v", err, c.ok)
			}
			got := make([]byte, c.n)
			if err := m.ReadAt(got, c.a); (err == nil) != c.ok {
				t.Fatalf("ReadAt: %v", err)
			}
			if c.ok && !bytes.Equal(got, want) {
				t.Fatal("read something else than written")
			}
			if got := m.Contains(c.a, uint64(c.n)); got != c.ok {
				t.Fatalf("Contains = %v", got)
			}
		})
	}
}

// A write that does not fit must leave the part that would have fitted alone.
func TestWriteAt_PartlyOutside_WritesNothing(t *testing.T) {
	m := twoRegions(t)
	if err := m.WriteAt(bytes.Repeat([]byte{1}, 32), 0x4FF0); err == nil {
		t.Fatal("accepted")
	}
	got := make([]byte, 16)
	if err := m.ReadAt(got, 0x4FF0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, make([]byte, 16)) {
		t.Fatal("bytes were written")
	}
}

func TestWord_AlignmentAndRange(t *testing.T) {
	m := twoRegions(t)
	if _, err := m.Word(2); !errors.Is(err, ErrAlign) {
		t.Errorf("unaligned word: %v", err)
	}
	if _, err := m.Word64(4); !errors.Is(err, ErrAlign) {
		t.Errorf("unaligned quad: %v", err)
	}
	if _, err := m.Word(0x5000); !errors.Is(err, ErrRange) {
		t.Errorf("word in the hole: %v", err)
	}
	w, err := m.Word(0x3FFC)
	if err != nil {
		t.Fatal(err)
	}
	w.Store(0x11223344)
	var b [4]byte
	m.ReadAt(b[:], 0x3FFC)
	if b != [4]byte{0x44, 0x33, 0x22, 0x11} {
		t.Errorf("word is not little-endian RAM: % x", b)
	}
}

func TestPageRange_Valid(t *testing.T) {
	for _, c := range []struct {
		r  PageRange
		ok bool
	}{
		{PageRange{0, 1, []uint64{1}}, true},
		{PageRange{4095, 1, []uint64{1}}, true},
		{PageRange{4095, 2, []uint64{1, 2}}, true},
		{PageRange{0, 4096, []uint64{1}}, true},
		{PageRange{0, 4097, []uint64{1, 2}}, true},
		{PageRange{0, 0, nil}, false},
		{PageRange{4096, 1, []uint64{1}}, false},
		{PageRange{0, 4096, []uint64{1, 2}}, false},
		{PageRange{1, 4096, []uint64{1}}, false},
		{PageRange{0xFFFFFFFF, 0xFFFFFFFF, []uint64{1}}, false},
	} {
		if got := c.r.Valid(); got != c.ok {
			t.Errorf("%+v: Valid = %v", c.r, got)
		}
	}
}

func TestIovecs_CoverTheRangeInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, err := New(Region{Base: 0, Size: 16 * PageSize})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		off := rapid.Uint32Range(0, PageSize-1).Draw(t, "offset")
		count := rapid.Uint32Range(1, 6*PageSize).Draw(t, "count")
		n := int(PagesFor(off, count))
		pfns := rapid.Permutation([]uint64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}).Draw(t, "pages")[:n]
		r := PageRange{off, count, pfns}
		vecs, err := m.Iovecs(nil, r)
		if err != nil {
			t.Fatal(err)
		}
		// Number the bytes through the vectors, read them back by address.
		i, total := byte(0), 0
		for _, v := range vecs {
			for k := range v {
				v[k] = i
				i++
			}
			total += len(v)
		}
		if total != int(count) {
			t.Fatalf("vectors hold %d bytes, want %d", total, count)
		}
		i = 0
		pos, left := off, int(count)
		for _, pfn := range pfns {
			k := min(left, int(PageSize-pos))
			b := make([]byte, k)
			m.ReadAt(b, GPA(pfn*PageSize)+GPA(pos))
			for _, got := range b {
				if got != i {
					t.Fatalf("page %d: byte %d, want %d", pfn, got, i)
				}
				i++
			}
			pos, left = 0, left-k
		}
	})
}

func TestIovecs_BadPages_AreRefused(t *testing.T) {
	m := twoRegions(t)
	for _, pfn := range []uint64{5, 10, 1 << 52, ^uint64(0)} {
		if _, err := m.Iovecs(nil, PageRange{0, 8, []uint64{pfn}}); !errors.Is(err, ErrRange) {
			t.Errorf("page %#x: %v", pfn, err)
		}
	}
}

func TestLoad(t *testing.T) {
	m := twoRegions(t)
	path := filepath.Join(t.TempDir(), "image")
	body := bytes.Repeat([]byte("0123456789abcdef"), 1024)
	if err := os.WriteFile(path, body, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := m.Load(0x3000, f, 16, 0x2000); err != nil { // crosses two regions
		t.Fatal(err)
	}
	got := make([]byte, 0x2000)
	m.ReadAt(got, 0x3000)
	if !bytes.Equal(got, body[16:16+0x2000]) {
		t.Error("loaded other bytes")
	}
	if err := m.Load(0, f, int64(len(body))-8, 16); err == nil {
		t.Error("a file that ends early was accepted")
	}
	if err := m.Load(0x9000, f, 0, 2*PageSize); !errors.Is(err, ErrRange) {
		t.Errorf("load past RAM: %v", err)
	}
}
