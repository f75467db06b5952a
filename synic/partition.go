package synic

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic/hv"
)

// A Hypervisor owns partitions.
type Hypervisor struct {
	mu         sync.Mutex
	partitions map[hv.PartitionID]*Partition
	nextID     hv.PartitionID
}

// NewHypervisor returns a hypervisor without partitions.
func NewHypervisor() *Hypervisor {
	// Id 0 is HV_PARTITION_ID_INVALID.
	return &Hypervisor{partitions: make(map[hv.PartitionID]*Partition), nextID: 1}
}

// Partition returns the partition with the given id, or nil.
func (h *Hypervisor) Partition(id hv.PartitionID) *Partition {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.partitions[id]
}

// A Partition is one virtual machine as the hypervisor sees it. Its methods
// may be called from any goroutine.
type Partition struct {
	h       *Hypervisor
	id      hv.PartitionID
	cfg     Config
	gpaMask uint64 // the bits a guest physical address may have
	autoEOI AutoEOIInterrupter
	log     *logger
	vps     []*VP
	dead    atomic.Bool   // Close was called
	nextVP  atomic.Uint32 // where the search for any VP starts

	connections atomic.Pointer[connections] // replaced, never changed
	connMu      sync.Mutex                  // held while replacing

	ports   map[*port]struct{} // of this partition's SINTs
	portsMu sync.Mutex

	// hypercall is the HYPERCALL register: written under mu, read without.
	hypercall atomic.Uint64

	mu            sync.Mutex // before any VP.mu
	places        map[guest.GPA]*place
	osID          uint64
	hypercallPage overlay
	tscRegister   hv.PageRegister
	tscPage       overlay
	tscSequence   uint32
	crash         [5]uint64
	tscInvariant  uint64
}

// NewPartition makes a partition with all its VPs in their reset state. It
// must be closed.
func (h *Hypervisor) NewPartition(cfg Config) (*Partition, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.PhysBits == 0 {
		cfg.PhysBits = MaxPhysBits
	}
	p := &Partition{
		h: h, cfg: cfg,
		gpaMask: 1<<cfg.PhysBits - 1,
		log:     newLogger(cfg.Logf),
		places:  make(map[guest.GPA]*place),
		ports:   make(map[*port]struct{}),
	}
	p.autoEOI, _ = cfg.Interrupts.(AutoEOIInterrupter)
	p.connections.Store(&connections{})
	p.hypercallPage = overlay{p: p, fixed: true, copy: new(pageCopy)}
	page := HypercallPage(cfg.TrapPort, cfg.SignalPort)
	p.hypercallPage.copy.store(&page)
	p.tscPage = overlay{p: p, fixed: true}
	for i := range cfg.VPs {
		v, err := newVP(p, hv.VPIndex(i))
		if err != nil {
			p.stopAlarms()
			return nil, fmt.Errorf("partition: alarm of VP %d: %w", i, err)
		}
		p.vps = append(p.vps, v)
	}
	h.mu.Lock()
	p.id = h.nextID
	h.nextID++
	h.partitions[p.id] = p
	h.mu.Unlock()
	return p, nil
}

// ID returns the partition's id, unique in its hypervisor.
func (p *Partition) ID() hv.PartitionID { return p.id }

// VP returns the processor with the given index, or nil.
func (p *Partition) VP(i hv.VPIndex) *VP {
	if uint64(i) >= uint64(len(p.vps)) {
		return nil
	}
	return p.vps[i]
}

// Reset is a reset of the whole partition: every register and page gets its
// reset value and queued messages are dropped. RAM comes back from under all
// overlays. Connections and ports of the host stay. No interrupt of the time
// before is raised after Reset has returned.
func (p *Partition) Reset() {
	p.mu.Lock()
	if p.dead.Load() {
		p.mu.Unlock()
		return
	}
	var after deferred
	for _, v := range p.vps {
		v.reset(&after)
	}
	p.osID = 0
	p.hypercall.Store(0)
	p.hypercallPage.set(false, 0)
	p.tscRegister = 0
	p.tscPage.set(false, 0)
	p.tscPage.clear()
	p.crash = [5]uint64{}
	invariant := p.tscInvariant
	p.tscInvariant = 0
	p.mu.Unlock()
	p.syncDoorbells()
	if invariant != 0 && p.cfg.OnTSCInvariant != nil {
		p.cfg.OnTSCInvariant(false)
	}
	after.run()
}

// Close ends the partition: its alarms stop, its connections end as by
// Disconnect, messages to it fail. The VPs must not run any more. After Close
// nothing here touches the guest's memory.
func (p *Partition) Close() {
	p.mu.Lock()
	already := p.dead.Swap(true)
	p.mu.Unlock()
	if already {
		return
	}
	for _, v := range p.vps {
		v.mu.Lock()
		v.dead = true
		v.mu.Unlock()
	}
	p.stopAlarms()
	p.disconnectAll()
	p.closePorts()
	p.h.mu.Lock()
	delete(p.h.partitions, p.id)
	p.h.mu.Unlock()
}

func (p *Partition) stopAlarms() {
	for _, v := range p.vps {
		if v.alarm != nil {
			v.alarm.Stop()
		}
	}
}

// has reports whether the partition holds all of the given privileges.
func (p *Partition) has(want hv.Privileges) bool { return p.cfg.Privileges.Has(want) }

// hasFeature reports whether the partition has all of the given features.
func (p *Partition) hasFeature(want uint32) bool { return p.cfg.Features&want == want }

// deferred collects what must happen after the locks are gone.
type deferred struct{ fns []func() }

func (d *deferred) add(f func()) {
	if f != nil {
		d.fns = append(d.fns, f)
	}
}

func (d *deferred) run() {
	for _, f := range d.fns {
		f()
	}
}
