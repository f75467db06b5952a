package synic

import (
	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic/hv"
)

// crashCapabilities is what CRASH_CTL reads as: what the guest may ask for.
const crashCapabilities = hv.CrashNotify | hv.CrashMessage

// A CrashReport is what a guest told about its own crash (TLFS "Guest Crash
// Enlightenment Interface").
type CrashReport struct {
	VP      hv.VPIndex
	Params  [5]uint64 // P0 to P4; their meaning is the guest's
	Control uint64    // as written to CRASH_CTL
	Message []byte    // the text, if Control has hv.CrashMessage; at most hv.CrashMessageMax bytes
}

// writeCrashControl acts on a write of CRASH_CTL. Only hv.CrashNotify makes a
// report; the register itself keeps nothing.
func (v *VP) writeCrashControl(control uint64) {
	p := v.p
	if control&hv.CrashNotify == 0 || p.cfg.OnCrash == nil {
		return
	}
	p.mu.Lock()
	r := CrashReport{VP: v.index, Params: p.crash, Control: control}
	p.mu.Unlock()
	if control&hv.CrashMessage != 0 {
		r.Message = p.crashText(guest.GPA(r.Params[3]), r.Params[4])
	}
	p.cfg.OnCrash(r)
}

// crashText copies the text at a, or as much of it as is RAM. The length is
// the guest's; more than a page is cut.
func (p *Partition) crashText(a guest.GPA, length uint64) []byte {
	b := make([]byte, min(length, hv.CrashMessageMax))
	got := 0
	for got < len(b) {
		n := min(len(b)-got, int(guest.PageSize-a.Offset()))
		next, ok := a.Add(uint64(n))
		if p.cfg.Memory.ReadAt(b[got:got+n], a) != nil {
			break
		}
		got += n
		if !ok {
			break
		}
		a = next
	}
	return b[:got]
}
