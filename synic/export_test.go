package synic

import (
	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic/hv"
)

// GuestPort is a port of a guest that another guest's connection leads to.
type GuestPort struct{ port *port }

func NewGuestMessagePort(owner *Partition, id hv.PortID, sint uint8, vp hv.VPIndex) GuestPort {
	return GuestPort{newMessagePort(owner, id, sint, vp, nil)}
}

func NewGuestEventPort(owner *Partition, id hv.PortID, sint uint8, vp hv.VPIndex, first, count uint16) GuestPort {
	return GuestPort{&port{typ: portEvent, id: id, owner: owner, sint: sint, vp: vp, firstFlag: first, flagCount: count}}
}

func (p *Partition) ConnectGuestPort(id hv.ConnectionID, t GuestPort) error {
	return p.connect(id, t.port)
}

func (t GuestPort) Delete() { t.port.close() }

// Places returns how many pages of RAM have overlays on them.
func (p *Partition) Places() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.places)
}

// TSCPage returns where the reference TSC page is.
func (p *Partition) TSCPage() guest.GPA {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tscRegister.Base()
}

// SetTSCSequence sets the sequence that the reference TSC page had last.
func (p *Partition) SetTSCSequence(n uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tscSequence = n
}

// Bounds of periodic timers.
const (
	PeriodicFloor = periodicFloor
	MaxCatchUp    = maxCatchUp
)

// SlotFree is slotFree with words of a test's own.
func SlotFree[W interface {
	Load() uint32
	Or(uint32) uint32
}](typ, header W) bool {
	return slotFree(typ, header)
}
