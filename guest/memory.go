package guest

import (
	"fmt"
	"os"
	"sort"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// hugePage is the size in bytes of the huge pages that back RAM where the host
// has them.
const hugePage = 2 << 20

// A Region is one contiguous piece of guest RAM.
type Region struct {
	Base GPA
	Size uint64 // bytes, a multiple of PageSize

	// File, when set, backs the region from its byte Offset on instead of
	// anonymous memory; the mapping is shared.
	File   *os.File
	Offset int64
}

// End returns the address after the last byte of the region.
func (r Region) End() GPA { return r.Base + GPA(r.Size) }

// region is a Region with its mapping in this process.
type region struct {
	Region
	mem []byte
}

// Memory is the RAM of one guest. Its methods may be called from any
// goroutine; two accesses to the same bytes are not ordered with each other
// nor with the guest's, except through Word and Word64.
type Memory struct {
	regions []region // by Base, not overlapping
	closed  atomic.Bool
}

// New maps the given regions. They must be page aligned and must not overlap.
// Pages are zero and take no host memory until they are touched.
func New(regions ...Region) (*Memory, error) {
	m := &Memory{}
	sorted := append([]Region(nil), regions...)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i].Base < sorted[j].Base })
	for i, r := range sorted {
		end, ok := r.Base.Add(r.Size)
		if !ok || r.Size == 0 || r.Size%PageSize != 0 || r.Base%PageSize != 0 {
			m.Close()
			return nil, fmt.Errorf("guest memory at %v, %d bytes: not whole pages", r.Base, r.Size)
		}
		if i > 0 && sorted[i-1].End() > r.Base {
			m.Close()
			return nil, fmt.Errorf("guest memory %v-%v overlaps the region at %v", r.Base, end, sorted[i-1].Base)
		}
		mem, err := mapRegion(r)
		if err != nil {
			m.Close()
			return nil, fmt.Errorf("guest memory of %d MiB at %v: mmap: %w", r.Size>>20, r.Base, err)
		}
		m.regions = append(m.regions, region{r, mem})
	}
	return m, nil
}

func mapRegion(r Region) ([]byte, error) {
	if r.File != nil {
		return mapFile(int(r.File.Fd()), r.Offset, r.Size)
	}
	mem, err := mapAnonymous(r.Base, r.Size)
	if err != nil {
		return nil, err
	}
	// Advice only: a kernel without huge pages serves small ones, and a core
	// dump of the monitor should not hold the guest's RAM.
	unix.Madvise(mem, unix.MADV_HUGEPAGE)
	unix.Madvise(mem, unix.MADV_DONTDUMP)
	return mem, nil
}

// Close unmaps the RAM. Nothing may use the memory afterwards.
func (m *Memory) Close() error {
	if m.closed.Swap(true) {
		return nil
	}
	var first error
	for _, r := range m.regions {
		if err := unmap(r.mem); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Regions returns the regions by ascending address.
func (m *Memory) Regions() []Region {
	rs := make([]Region, len(m.regions))
	for i, r := range m.regions {
		rs[i] = r.Region
	}
	return rs
}

// Size returns the bytes of RAM in all regions.
func (m *Memory) Size() uint64 {
	var n uint64
	for _, r := range m.regions {
		n += r.Size
	}
	return n
}

// Contains reports whether the n bytes at a all are RAM. An empty run is
// contained if its address is.
func (m *Memory) Contains(a GPA, n uint64) bool {
	for {
		r := m.find(a)
		if r == nil {
			return false
		}
		left := uint64(r.End() - a)
		if n <= left {
			return true
		}
		a, n = r.End(), n-left
	}
}

// find returns the region that holds a, or nil.
func (m *Memory) find(a GPA) *region {
	i := sort.Search(len(m.regions), func(i int) bool { return m.regions[i].End() > a })
	if i == len(m.regions) || a < m.regions[i].Base {
		return nil
	}
	return &m.regions[i]
}

// each calls f with the pieces of RAM that make up the n bytes at a, in
// order. It calls f for nothing unless all bytes are RAM.
func (m *Memory) each(a GPA, n uint64, f func(piece []byte)) error {
	if !m.Contains(a, n) {
		return fmt.Errorf("%w: %d bytes at %v", ErrRange, n, a)
	}
	for n > 0 {
		r := m.find(a)
		off := uint64(a - r.Base)
		k := min(n, r.Size-off)
		f(r.mem[off : off+k : off+k])
		a, n = a+GPA(k), n-k
	}
	return nil
}

// inOne returns the n bytes at a if they lie in one region: the common case,
// kept free of closures for the hot paths.
func (m *Memory) inOne(a GPA, n uint64) []byte {
	r := m.find(a)
	if r == nil {
		return nil
	}
	off := uint64(a - r.Base)
	if n > r.Size-off {
		return nil
	}
	return r.mem[off : off+n : off+n]
}

// ReadAt copies len(p) bytes at a into p: all of them, or none and ErrRange.
func (m *Memory) ReadAt(p []byte, a GPA) error {
	if b := m.inOne(a, uint64(len(p))); b != nil {
		copyGuest(p, b)
		return nil
	}
	return m.each(a, uint64(len(p)), func(b []byte) {
		copyGuest(p, b)
		p = p[len(b):]
	})
}

// WriteAt copies p to a: all of it, or nothing and ErrRange.
func (m *Memory) WriteAt(p []byte, a GPA) error {
	if b := m.inOne(a, uint64(len(p))); b != nil {
		copyGuest(b, p)
		return nil
	}
	return m.each(a, uint64(len(p)), func(b []byte) {
		copyGuest(b, p)
		p = p[len(b):]
	})
}

// Zero clears n bytes at a: all of them, or none and ErrRange. Whole huge
// pages are given back to the host instead: clearing pages that were never
// touched would only make it provide them.
func (m *Memory) Zero(a GPA, n uint64) error {
	if !m.Contains(a, n) {
		return fmt.Errorf("%w: %d bytes at %v", ErrRange, n, a)
	}
	for n > 0 {
		r := m.find(a)
		k := min(n, uint64(r.End()-a))
		// Only huge pages, for giving back a part would split one.
		first, last := (a+hugePage-1)&^(hugePage-1), (a+GPA(k))&^(hugePage-1)
		off := func(a GPA) uint64 { return uint64(a - r.Base) }
		if r.File == nil && first < last && unix.Madvise(r.mem[off(first):off(last)], unix.MADV_DONTNEED) == nil {
			zeroGuest(r.mem[off(a):off(first)])
			zeroGuest(r.mem[off(last):off(a+GPA(k))])
		} else {
			zeroGuest(r.mem[off(a):off(a+GPA(k))])
		}
		a, n = a+GPA(k), n-k
	}
	return nil
}

// Word returns the aligned 32-bit word at a for atomic access. The word stays
// valid until Close.
func (m *Memory) Word(a GPA) (*atomic.Uint32, error) {
	if a%4 != 0 {
		return nil, fmt.Errorf("%w to 4: %v", ErrAlign, a)
	}
	b := m.inOne(a, 4)
	if b == nil {
		return nil, fmt.Errorf("%w: word at %v", ErrRange, a)
	}
	return word32(b), nil
}

// Word64 returns the aligned 64-bit word at a for atomic access. The word
// stays valid until Close.
func (m *Memory) Word64(a GPA) (*atomic.Uint64, error) {
	if a%8 != 0 {
		return nil, fmt.Errorf("%w to 8: %v", ErrAlign, a)
	}
	b := m.inOne(a, 8)
	if b == nil {
		return nil, fmt.Errorf("%w: word at %v", ErrRange, a)
	}
	return word64(b), nil
}

// CheckRange reports whether r is well formed and all its pages are RAM.
func (m *Memory) CheckRange(r PageRange) error {
	if !r.Valid() {
		return fmt.Errorf("malformed page range: offset %d, count %d, %d pages", r.ByteOffset, r.ByteCount, len(r.PFNs))
	}
	for _, pfn := range r.PFNs {
		a, ok := PageGPA(pfn)
		if !ok || !m.Contains(a, PageSize) {
			return fmt.Errorf("%w: page %#x", ErrRange, pfn)
		}
	}
	return nil
}

// Iovecs appends to dst the host memory that r covers, for a readv or writev
// by the kernel. The contents are hostile and shared with the guest: pass
// them to a system call, never read them here.
func (m *Memory) Iovecs(dst [][]byte, r PageRange) ([][]byte, error) {
	if err := m.CheckRange(r); err != nil {
		return dst, err
	}
	off, left := r.ByteOffset, r.ByteCount
	for _, pfn := range r.PFNs {
		n := min(left, PageSize-off)
		dst = append(dst, m.inOne(GPA(pfn<<PageShift)+GPA(off), uint64(n)))
		off, left = 0, left-n
	}
	return dst, nil
}

// Load reads n bytes of f from offset off straight into RAM at a, without a
// copy in between. A file that ends early is an error.
func (m *Memory) Load(a GPA, f *os.File, off int64, n uint64) error {
	if !m.Contains(a, n) {
		return fmt.Errorf("%w: %d bytes at %v", ErrRange, n, a)
	}
	var err error
	m.each(a, n, func(b []byte) {
		for len(b) > 0 && err == nil {
			var k int
			k, err = unix.Pread(int(f.Fd()), b, off)
			switch {
			case err == unix.EINTR:
				err, k = nil, 0
			case err == nil && k == 0:
				err = fmt.Errorf("%s: file ends at byte %d", f.Name(), off)
			}
			b, off = b[k:], off+int64(k)
		}
	})
	return err
}
