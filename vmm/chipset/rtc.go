package chipset

import (
	"sync"
	"time"
)

// An RTC is the clock and the 128 bytes of an MC146818: an index register and
// a data register. It shows the host's UTC; a guest that sets it changes an
// offset of its own. Alarms and periodic interrupts are stored and never
// fire.
type RTC struct {
	// Now is the host's clock; time.Now unless a test sets it.
	Now func() time.Time

	mu     sync.Mutex
	index  uint8
	ram    [128]uint8
	offset time.Duration
}

const (
	rtcSeconds = 0x00
	rtcMinutes = 0x02
	rtcHours   = 0x04
	rtcWeekday = 0x06
	rtcDay     = 0x07
	rtcMonth   = 0x08
	rtcYear    = 0x09
	rtcA       = 0x0A
	rtcB       = 0x0B
	rtcC       = 0x0C
	rtcD       = 0x0D
	rtcCentury = 0x32

	rtcB24h    = 0x02
	rtcBBinary = 0x04
	rtcDValid  = 0x80
)

// NewRTC returns an RTC in 24-hour BCD mode, which is what PC firmware leaves
// behind.
func NewRTC() *RTC {
	r := &RTC{Now: time.Now}
	r.ram[rtcA] = 0x26
	r.ram[rtcB] = rtcB24h
	return r
}

// PortIn reads the index (0) or the data (1) register.
func (r *RTC) PortIn(off uint16, p []byte) {
	for i := range p {
		p[i] = 0xFF
	}
	if off != 1 {
		return // the index register cannot be read on a PC
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p[0] = r.read(r.index)
}

func (r *RTC) read(i uint8) uint8 {
	now := r.Now().UTC().Add(r.offset)
	switch i {
	case rtcSeconds:
		return r.number(now.Second())
	case rtcMinutes:
		return r.number(now.Minute())
	case rtcHours:
		return r.hours(now.Hour())
	case rtcWeekday:
		return r.number(int(now.Weekday()) + 1)
	case rtcDay:
		return r.number(now.Day())
	case rtcMonth:
		return r.number(int(now.Month()))
	case rtcYear:
		return r.number(now.Year() % 100)
	case rtcCentury:
		return r.number(now.Year() / 100)
	case rtcC:
		return 0
	case rtcD:
		return rtcDValid
	}
	return r.ram[i]
}

// PortOut writes the index (0) or the data (1) register.
func (r *RTC) PortOut(off uint16, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if off == 0 {
		r.index = p[0] & 0x7F // bit 7 masks NMIs, of which there are none
		return
	}
	v := p[0]
	now := r.Now().UTC().Add(r.offset)
	y, mo, d := now.Date()
	h, mi, s := now.Clock()
	switch r.index {
	case rtcSeconds:
		s = r.value(v)
	case rtcMinutes:
		mi = r.value(v)
	case rtcHours:
		h = r.hourValue(v)
	case rtcDay:
		d = r.value(v)
	case rtcMonth:
		mo = time.Month(r.value(v))
	case rtcYear:
		y = y/100*100 + r.value(v)
	case rtcCentury:
		y = r.value(v)*100 + y%100
	case rtcWeekday, rtcC, rtcD:
		return
	case rtcA:
		r.ram[rtcA] = v & 0x7F // update-in-progress is never set
		return
	default:
		r.ram[r.index] = v
		return
	}
	r.offset += time.Date(y, mo, d, h, mi, s, now.Nanosecond(), time.UTC).Sub(now)
}

func (r *RTC) number(n int) uint8 {
	if r.ram[rtcB]&rtcBBinary != 0 {
		return uint8(n)
	}
	return uint8(n/10<<4 | n%10)
}

func (r *RTC) value(v uint8) int {
	if r.ram[rtcB]&rtcBBinary != 0 {
		return int(v)
	}
	return int(v>>4)*10 + int(v&0xF)
}

func (r *RTC) hours(h int) uint8 {
	if r.ram[rtcB]&rtcB24h != 0 {
		return r.number(h)
	}
	pm := uint8(0)
	if h >= 12 {
		pm = 0x80
	}
	return r.number((h+11)%12+1) | pm
}

func (r *RTC) hourValue(v uint8) int {
	if r.ram[rtcB]&rtcB24h != 0 {
		return r.value(v)
	}
	h := r.value(v&0x7F) % 12
	if v&0x80 != 0 {
		h += 12
	}
	return h
}
