package vmbustest

import (
	"sync"

	"github.com/hvpost/hvpost/guest"
)

// A pool hands out guest pages, neighbours far apart, so that nothing can rely
// on adjacent ones.
type pool struct {
	mem *guest.Memory

	mu   sync.Mutex
	free []uint64 // PFNs
}

// reservedPages at the start of RAM are for the SynIC pages of processors and
// for tests that name pages themselves.
const reservedPages = 512

// newPool takes all other pages of mem.
func newPool(mem *guest.Memory) *pool {
	p := &pool{mem: mem}
	for _, r := range mem.Regions() {
		n := r.Size / guest.PageSize
		base := r.Base.Page()
		// Two interleaved runs, the second one backwards.
		for i := range n / 2 {
			p.free = append(p.free, base+i, base+n-1-i)
		}
	}
	kept := p.free[:0]
	for _, pfn := range p.free {
		if pfn >= reservedPages {
			kept = append(kept, pfn)
		}
	}
	p.free = kept
	return p
}

// take returns n pages, and panics without them: the test made RAM too small.
func (p *pool) take(n int) []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n > len(p.free) {
		panic("vmbustest: guest is out of pages")
	}
	pfns := append([]uint64(nil), p.free[len(p.free)-n:]...)
	p.free = p.free[:len(p.free)-n]
	return pfns
}

func (p *pool) put(pfns []uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, pfns...)
}

func (p *pool) left() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.free)
}
