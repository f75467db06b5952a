package chipset

import "sync"

// An IRQ drives an interrupt line.
type IRQ func(level bool)

// UART registers, by offset (National Semiconductor PC16550D).
const (
	uartData = 0 // RBR, THR; DLL with DLAB
	uartIER  = 1 // DLM with DLAB
	uartIIR  = 2 // FCR when written
	uartLCR  = 3
	uartMCR  = 4
	uartLSR  = 5
	uartMSR  = 6
	uartSCR  = 7
)

const (
	ierRx   = 0x01
	ierTHRE = 0x02
	ierLine = 0x04
	ierMask = 0x0F

	iirNone    = 0x01
	iirTHRE    = 0x02
	iirRx      = 0x04
	iirTimeout = 0x0C
	iirLine    = 0x06
	iirFIFO    = 0xC0

	fcrEnable  = 0x01
	fcrClearRx = 0x02

	lcrDLAB = 0x80

	mcrDTR  = 0x01
	mcrRTS  = 0x02
	mcrOut1 = 0x04
	mcrOut2 = 0x08
	mcrLoop = 0x10

	lsrData    = 0x01
	lsrOverrun = 0x02
	lsrIdle    = 0x60 // THRE and TEMT: what is sent is sent at once

	msrCTS = 0x10
	msrDSR = 0x20
	msrRI  = 0x40
	msrDCD = 0x80
)

// uartFIFO is the receive FIFO of a 16550A.
const uartFIFO = 16

// A UART is a 16550A whose transmitter never waits. Transmitted bytes go to
// the sink on the virtual processor that wrote them, so the sink must not
// block; see Output for one that does not. Received bytes come by Receive.
type UART struct {
	irq  IRQ
	sink func(b byte)

	// Room, if set, is called without the lock held when the guest has
	// emptied the receive FIFO.
	Room func()

	mu       sync.Mutex
	rx       [uartFIFO]byte
	rxHead   int
	rxLen    int
	dll, dlm uint8
	ier      uint8
	fcr      uint8
	lcr      uint8
	mcr      uint8
	scr      uint8
	overrun  bool
	thre     bool // transmitter-empty interrupt pending
	level    bool
}

// NewUART returns a UART in its reset state.
func NewUART(irq IRQ, sink func(b byte)) *UART {
	u := &UART{irq: irq, sink: sink}
	u.reset()
	return u
}

// Reset returns the UART to its power-on state; received bytes are dropped.
func (u *UART) Reset() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reset()
	u.update()
}

func (u *UART) reset() {
	u.rxHead, u.rxLen = 0, 0
	u.dll, u.dlm, u.ier, u.fcr, u.lcr, u.scr = 1, 0, 0, 0, 0, 0
	u.mcr = mcrOut2
	u.overrun, u.thre = false, false
}

// Receive puts bytes into the receive FIFO and returns how many fitted.
func (u *UART) Receive(p []byte) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.mcr&mcrLoop != 0 {
		return 0 // the line is disconnected
	}
	n := min(len(p), u.capacity()-u.rxLen)
	for _, b := range p[:n] {
		u.push(b)
	}
	u.update()
	return n
}

func (u *UART) capacity() int {
	if u.fcr&fcrEnable == 0 {
		return 1
	}
	return uartFIFO
}

func (u *UART) push(b byte) {
	if u.rxLen == u.capacity() {
		u.overrun = true
		return
	}
	u.rx[(u.rxHead+u.rxLen)%uartFIFO] = b
	u.rxLen++
}

func (u *UART) pop() byte {
	if u.rxLen == 0 {
		return 0
	}
	b := u.rx[u.rxHead]
	u.rxHead = (u.rxHead + 1) % uartFIFO
	u.rxLen--
	return b
}

// update drives the interrupt line from the registers. The line is gated by
// OUT2, as on a PC.
func (u *UART) update() {
	level := u.cause() != iirNone && u.mcr&mcrOut2 != 0 && u.mcr&mcrLoop == 0
	if level != u.level {
		u.level = level
		u.irq(level)
	}
}

// cause returns the identification of the highest interrupt pending.
func (u *UART) cause() uint8 {
	switch {
	case u.ier&ierLine != 0 && u.overrun:
		return iirLine
	case u.ier&ierRx != 0 && u.rxLen > 0:
		if u.fcr&fcrEnable != 0 {
			return iirTimeout // whatever the trigger level: no more is coming
		}
		return iirRx
	case u.ier&ierTHRE != 0 && u.thre:
		return iirTHRE
	}
	return iirNone
}

// PortIn reads the register at off.
func (u *UART) PortIn(off uint16, p []byte) {
	for i := range p {
		p[i] = 0xFF
	}
	u.mu.Lock()
	room := false
	switch {
	case off == uartData && u.lcr&lcrDLAB != 0:
		p[0] = u.dll
	case off == uartIER && u.lcr&lcrDLAB != 0:
		p[0] = u.dlm
	case off == uartData:
		had := u.rxLen
		p[0] = u.pop()
		room = had > 0 && u.rxLen == 0
	case off == uartIER:
		p[0] = u.ier
	case off == uartIIR:
		p[0] = u.cause()
		if p[0] == iirTHRE {
			u.thre = false
		}
		if u.fcr&fcrEnable != 0 {
			p[0] |= iirFIFO
		}
	case off == uartLCR:
		p[0] = u.lcr
	case off == uartMCR:
		p[0] = u.mcr
	case off == uartLSR:
		p[0] = lsrIdle
		if u.rxLen > 0 {
			p[0] |= lsrData
		}
		if u.overrun {
			p[0] |= lsrOverrun
			u.overrun = false
		}
	case off == uartMSR:
		p[0] = u.modemStatus()
	case off == uartSCR:
		p[0] = u.scr
	}
	u.update()
	notify := u.Room
	u.mu.Unlock()
	if room && notify != nil {
		notify()
	}
}

func (u *UART) modemStatus() uint8 {
	if u.mcr&mcrLoop == 0 {
		return msrCTS | msrDSR | msrDCD
	}
	var s uint8
	for _, w := range [...]struct{ out, in uint8 }{
		{mcrDTR, msrDSR}, {mcrRTS, msrCTS}, {mcrOut1, msrRI}, {mcrOut2, msrDCD},
	} {
		if u.mcr&w.out != 0 {
			s |= w.in
		}
	}
	return s
}

// PortOut writes the register at off.
func (u *UART) PortOut(off uint16, p []byte) {
	v := p[0]
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case off == uartData && u.lcr&lcrDLAB != 0:
		u.dll = v
	case off == uartIER && u.lcr&lcrDLAB != 0:
		u.dlm = v
	case off == uartData:
		if u.mcr&mcrLoop != 0 {
			u.push(v)
		} else {
			u.sink(v)
		}
		u.thre = true
	case off == uartIER:
		if v&ierTHRE != 0 && u.ier&ierTHRE == 0 {
			u.thre = true
		}
		u.ier = v & ierMask
	case off == uartIIR:
		if (u.fcr^v)&fcrEnable != 0 || v&fcrClearRx != 0 {
			u.rxHead, u.rxLen = 0, 0
		}
		u.fcr = v
	case off == uartLCR:
		u.lcr = v
	case off == uartMCR:
		u.mcr = v & 0x1F
	case off == uartSCR:
		u.scr = v
	}
	u.update()
}
