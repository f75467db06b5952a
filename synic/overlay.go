package synic

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"github.com/hvpost/hvpost/guest"
)

const pageWords = guest.PageSize / 4

// A pageCopy is the content of a page kept on the host. Its words have the
// type of the words of guest RAM, so that code which works on a page need not
// know where it is.
type pageCopy [pageWords]atomic.Uint32

func (c *pageCopy) load(b *[guest.PageSize]byte) {
	for i := range c {
		binary.LittleEndian.PutUint32(b[4*i:], c[i].Load())
	}
}

func (c *pageCopy) store(b *[guest.PageSize]byte) {
	for i := range c {
		c[i].Store(binary.LittleEndian.Uint32(b[4*i:]))
	}
}

func (c *pageCopy) zero() {
	for i := range c {
		c[i].Store(0)
	}
}

// An overlay is one overlay page. Its owner is the VP whose register places
// it, or nil for pages of the partition.
//
// enabled and base change under Partition.mu. visible and the choice of where
// the content is change under Partition.mu and the owner's mu, so holding
// either makes the content stay where it is.
type overlay struct {
	p     *Partition
	owner *VP
	fixed bool // what is written to the page in RAM is not taken back

	enabled bool
	base    guest.GPA
	visible bool      // the content is in RAM at base
	copy    *pageCopy // otherwise it is here; nil: all zero so far
}

// A place is one page of RAM with overlays on it, the last one on top and
// alone visible. There are at most three per VP and two per partition, so
// places need no bound of their own.
type place struct {
	under [guest.PageSize]byte // the RAM as it was
	stack []*overlay
}

func (o *overlay) lock() {
	if o.owner != nil {
		o.owner.mu.Lock()
	}
}

func (o *overlay) unlock() {
	if o.owner != nil {
		o.owner.mu.Unlock()
	}
}

// hostCopy returns the copy, which must be there before anything works on the
// content of an invisible page.
func (o *overlay) hostCopy() *pageCopy {
	if o.copy == nil {
		o.copy = new(pageCopy)
	}
	return o.copy
}

// word returns an aligned word of the content. The owner's mu is held.
func (o *overlay) word(off uint32) *atomic.Uint32 {
	if !o.visible {
		return &o.hostCopy()[off/4]
	}
	w, err := o.p.cfg.Memory.Word(o.base + guest.GPA(off))
	if err != nil {
		// RAM does not go away while a partition uses it.
		panic(fmt.Sprintf("synic: overlay page at %v: %v", o.base, err))
	}
	return w
}

// write copies b into the content at off, a multiple of 4. The owner's mu is
// held.
func (o *overlay) write(off uint32, b []byte) {
	if o.visible {
		o.mustWrite(b, o.base+guest.GPA(off))
		return
	}
	c := o.hostCopy()
	for i := off / 4; len(b) > 0; i++ {
		var w [4]byte
		n := copy(w[:], b)
		if n < 4 {
			binary.LittleEndian.PutUint32(w[:], c[i].Load())
			copy(w[:], b)
		}
		c[i].Store(binary.LittleEndian.Uint32(w[:]))
		b = b[n:]
	}
}

func (o *overlay) mustWrite(b []byte, a guest.GPA) {
	if err := o.p.cfg.Memory.WriteAt(b, a); err != nil {
		panic(fmt.Sprintf("synic: overlay page at %v: %v", o.base, err))
	}
}

// show puts the content into RAM. The first word goes last, after having been
// zero: for the reference TSC page that is the sequence, which makes readers
// wait for the rest.
func (o *overlay) show() {
	var b [guest.PageSize]byte
	o.lock()
	defer o.unlock()
	if o.copy != nil {
		o.copy.load(&b)
	}
	o.visible = true
	o.word(0).Store(0)
	o.mustWrite(b[4:], o.base+4)
	o.word(0).Store(binary.LittleEndian.Uint32(b[:]))
}

// hide takes the content out of RAM and leaves there whatever is there.
func (o *overlay) hide() {
	o.lock()
	defer o.unlock()
	if !o.fixed {
		var b [guest.PageSize]byte
		if err := o.p.cfg.Memory.ReadAt(b[:], o.base); err != nil {
			panic(fmt.Sprintf("synic: overlay page at %v: %v", o.base, err))
		}
		o.hostCopy().store(&b)
	}
	o.visible = false
}

// clear makes the content zero. The overlay is disabled.
func (o *overlay) clear() {
	o.lock()
	defer o.unlock()
	if o.copy != nil {
		o.copy.zero()
	}
}

// set enables the overlay at base, moves it there, or disables it. A page
// that was enabled already at base stays as it is, in its place among others.
// Partition.mu is held, no VP's mu is.
func (o *overlay) set(enabled bool, base guest.GPA) {
	if o.enabled && enabled && o.base == base {
		return
	}
	if o.enabled {
		o.remove()
	}
	o.enabled = enabled
	if enabled {
		o.put(base)
	}
}

func (o *overlay) put(base guest.GPA) {
	o.base = base
	if !o.p.cfg.Memory.Contains(base, guest.PageSize) {
		return
	}
	pl := o.p.places[base]
	if pl == nil {
		pl = new(place)
		if err := o.p.cfg.Memory.ReadAt(pl.under[:], base); err != nil {
			panic(fmt.Sprintf("synic: overlay page at %v: %v", base, err))
		}
		o.p.places[base] = pl
	} else {
		pl.stack[len(pl.stack)-1].hide()
	}
	pl.stack = append(pl.stack, o)
	o.show()
}

func (o *overlay) remove() {
	pl := o.p.places[o.base]
	if pl == nil {
		return // outside RAM
	}
	top := len(pl.stack) - 1
	for i, x := range pl.stack {
		if x == o {
			pl.stack = append(pl.stack[:i], pl.stack[i+1:]...)
			if i < top {
				return // nobody saw it
			}
			break
		}
	}
	o.hide()
	if top > 0 {
		pl.stack[top-1].show()
		return
	}
	o.mustWrite(pl.under[:], o.base)
	delete(o.p.places, o.base)
}
