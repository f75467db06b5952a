package synic

import (
	"sync"

	"github.com/hvpost/hvpost/synic/hv"
)

// A VP is a virtual processor's share of the hypervisor: its SynIC and its
// timers. ReadMSR and WriteMSR belong to the goroutine that runs the
// processor; everything else may be called from anywhere.
type VP struct {
	p     *Partition
	index hv.VPIndex
	alarm Alarm // nil without timers

	mu       sync.Mutex // a leaf
	dead     bool       // the partition is closed: RAM is off limits
	scontrol uint64
	simp     hv.PageRegister
	siefp    hv.PageRegister
	assist   hv.PageRegister
	sint     [hv.SINTCount]hv.SINT
	queue    [hv.SINTCount]queue
	timer    [hv.TimerCount]timer
	alarmAt  uint64 // what the alarm is set to, 0: nothing

	simPage    overlay
	siefPage   overlay
	assistPage overlay
}

func newVP(p *Partition, i hv.VPIndex) (*VP, error) {
	v := &VP{p: p, index: i}
	for _, o := range []*overlay{&v.simPage, &v.siefPage, &v.assistPage} {
		*o = overlay{p: p, owner: v}
	}
	for n := range v.sint {
		v.sint[n] = hv.SINTReset
	}
	for n := range v.timer {
		v.timer[n].index = n
		v.timer[n].buffer.timer = &v.timer[n]
	}
	if p.cfg.Alarms == nil {
		return v, nil
	}
	var err error
	v.alarm, err = p.cfg.Alarms(i, v.expire)
	return v, err
}

// Index returns the VP's number in its partition.
func (v *VP) Index() hv.VPIndex { return v.index }

// Reset is what INIT does to the VP: its registers get their reset values, its
// pages become zero and RAM comes back from under them, its queued messages
// are dropped.
func (v *VP) Reset() {
	v.p.mu.Lock()
	var after deferred
	if !v.p.dead.Load() {
		v.reset(&after)
	}
	v.p.mu.Unlock()
	after.run()
}

// reset is Reset with Partition.mu held.
func (v *VP) reset(after *deferred) {
	v.mu.Lock()
	v.scontrol = 0
	v.simp, v.siefp, v.assist = 0, 0, 0
	for n := range v.sint {
		v.sint[n] = hv.SINTReset
		v.drop(uint8(n), func(*buffer) bool { return true }, after)
	}
	for n := range v.timer {
		t := &v.timer[n]
		t.config, t.count, t.due, t.at = 0, 0, 0, 0
	}
	v.rearm()
	v.mu.Unlock()
	for _, o := range []*overlay{&v.simPage, &v.siefPage, &v.assistPage} {
		o.set(false, 0)
		o.clear()
	}
}

// raise interrupts the VP for a SINT, unless that is masked or polled. mu is
// held.
func (v *VP) raise(sint uint8, after *deferred) {
	s := v.sint[sint]
	if s.Masked() || s.Polling() {
		return
	}
	var err error
	if s.AutoEOI() && v.p.autoEOI != nil {
		err = v.p.autoEOI.InterruptAutoEOI(v.index, s.Vector())
	} else {
		err = v.p.cfg.Interrupts.Interrupt(v.index, s.Vector())
	}
	if err != nil {
		after.add(func() {
			v.p.log.printf("VP %d: interrupt %#x of SINT %d: %v", v.index, s.Vector(), sint, err)
		})
	}
}
