package ring

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/hvpost/hvpost/guest"
)

// Offsets of the words in the header page (Linux struct hv_ring_buffer).
const (
	offWrite    = 0
	offRead     = 4
	offMask     = 8
	offPending  = 12
	offFeatures = 64
)

// featurePendingSend says that the writer of this ring uses pending_send_sz.
const featurePendingSend = 1

// MinPages is the least number of pages of a ring: the header and one of data.
const MinPages = 2

// MaxPages bounds a ring at 1 GiB, so that sums of two indices fit into 32
// bits. The largest ring a driver asks for is 2 MiB (Linux uio_hv_generic).
const MaxPages = 1 << 18

// ErrCorrupt reports that the peer broke the ring's rules. It is final.
var ErrCorrupt = errors.New("ring corrupt")

// ErrFull reports that a packet does not fit at present.
var ErrFull = errors.New("ring full")

// ErrTooBig reports that a packet will never fit into this ring.
var ErrTooBig = errors.New("packet larger than the ring")

// header holds the words of a ring's first page.
type header struct {
	write, read, mask, pending, features *atomic.Uint32
}

// pages is the data part of a ring: a run of bytes in guest pages that need
// not be adjacent.
type pages struct {
	mem  *guest.Memory
	gpa  []guest.GPA // of each data page
	end  []uint32    // where the run of adjacent pages around each page ends
	size uint32      // bytes
}

// open checks the page list and finds the header words.
func open(mem *guest.Memory, pfns []uint64) (pages, header, error) {
	var h header
	if len(pfns) < MinPages || len(pfns) > MaxPages {
		return pages{}, h, fmt.Errorf("ring of %d pages: want %d to %d", len(pfns), MinPages, MaxPages)
	}
	all := make([]guest.GPA, len(pfns))
	for i, pfn := range pfns {
		a, ok := guest.PageGPA(pfn)
		if !ok || !mem.Contains(a, guest.PageSize) {
			return pages{}, h, fmt.Errorf("ring page %#x: %w", pfn, guest.ErrRange)
		}
		all[i] = a
	}
	for _, w := range []struct {
		p   **atomic.Uint32
		off guest.GPA
	}{{&h.write, offWrite}, {&h.read, offRead}, {&h.mask, offMask}, {&h.pending, offPending}, {&h.features, offFeatures}} {
		word, err := mem.Word(all[0] + w.off)
		if err != nil {
			return pages{}, h, fmt.Errorf("ring header: %w", err)
		}
		*w.p = word
	}
	d := pages{mem: mem, gpa: all[1:], size: uint32(len(pfns)-1) * guest.PageSize}
	d.end = make([]uint32, len(d.gpa))
	for i := len(d.gpa) - 1; i >= 0; i-- {
		d.end[i] = uint32(i+1) * guest.PageSize
		if i+1 < len(d.gpa) && d.gpa[i+1] == d.gpa[i]+guest.PageSize {
			d.end[i] = d.end[i+1]
		}
	}
	return d, h, nil
}

// valid reports whether x can be an index.
func (d *pages) valid(x uint32) bool { return x < d.size && x%8 == 0 }

// dist returns how far index b lies after index a, going round.
func (d *pages) dist(a, b uint32) uint32 {
	if b >= a {
		return b - a
	}
	return d.size - a + b
}

// add returns the index n bytes after a; n is at most the size.
func (d *pages) add(a, n uint32) uint32 {
	if a += n; a >= d.size {
		a -= d.size
	}
	return a
}

// piece returns the address of index off and how many of n bytes follow it
// without a gap.
func (d *pages) piece(off uint32, n int) (guest.GPA, int) {
	i := off / guest.PageSize
	return d.gpa[i] + guest.GPA(off%guest.PageSize), min(n, int(d.end[i]-off))
}

// readAt copies the len(p) bytes at index off, going round at the end.
func (d *pages) readAt(p []byte, off uint32) error {
	for len(p) > 0 {
		a, n := d.piece(off, len(p))
		if err := d.mem.ReadAt(p[:n], a); err != nil {
			return fmt.Errorf("ring data: %w", err)
		}
		p, off = p[n:], d.add(off, uint32(n))
	}
	return nil
}

// writeAt copies p to index off, going round at the end.
func (d *pages) writeAt(p []byte, off uint32) error {
	for len(p) > 0 {
		a, n := d.piece(off, len(p))
		if err := d.mem.WriteAt(p[:n], a); err != nil {
			return fmt.Errorf("ring data: %w", err)
		}
		p, off = p[n:], d.add(off, uint32(n))
	}
	return nil
}

// Format makes the pages an empty ring. A guest does so before it opens the
// channel.
func Format(mem *guest.Memory, pfns []uint64) error {
	_, h, err := open(mem, pfns)
	if err != nil {
		return err
	}
	a, _ := guest.PageGPA(pfns[0])
	if err := mem.Zero(a, guest.PageSize); err != nil {
		return fmt.Errorf("ring header: %w", err)
	}
	h.features.Store(featurePendingSend)
	return nil
}
