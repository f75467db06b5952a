package chipset

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

// line records an interrupt line.
type line struct {
	level  bool
	raised int
}

func (l *line) set(v bool) {
	if v && !l.level {
		l.raised++
	}
	l.level = v
}

func in(d interface{ PortIn(uint16, []byte) }, off uint16) byte {
	var b [1]byte
	d.PortIn(off, b[:])
	return b[0]
}

func out(d interface{ PortOut(uint16, []byte) }, off uint16, v byte) {
	d.PortOut(off, []byte{v})
}

// The checks that Linux's 8250 driver makes before it believes in a 16550A
// (drivers/tty/serial/8250/8250_port.c, autoconfig).
func TestUART_LinuxProbe_Is16550A(t *testing.T) {
	u := NewUART((&line{}).set, func(byte) {})
	out(u, uartIER, 0)
	if v := in(u, uartIER); v&0x0F != 0 {
		t.Errorf("IER reads %#x after 0", v)
	}
	out(u, uartIER, 0x0F)
	if v := in(u, uartIER); v != 0x0F {
		t.Errorf("IER reads %#x after 0x0F", v)
	}
	out(u, uartIER, 0)
	out(u, uartMCR, mcrLoop|0x0A)
	if v := in(u, uartMSR) & 0xF0; v != 0x90 {
		t.Errorf("MSR in loopback reads %#x, want 0x90", v)
	}
	out(u, uartMCR, 0)
	out(u, uartIIR, fcrEnable)
	if v := in(u, uartIIR) >> 6; v != 3 {
		t.Errorf("FIFO bits are %d, want 3 (16550A)", v)
	}
	out(u, uartLCR, lcrDLAB)
	if v := in(u, uartIIR); v == 0 {
		t.Error("reads as a 16650 with an enhanced feature register")
	}
	out(u, uartLCR, 0)
	out(u, uartSCR, 0x5A)
	if v := in(u, uartSCR); v != 0x5A {
		t.Errorf("scratch reads %#x", v)
	}
}

func TestUART_Transmit_ReachesSinkAndInterrupts(t *testing.T) {
	var got bytes.Buffer
	l := &line{}
	u := NewUART(l.set, func(b byte) { got.WriteByte(b) })
	out(u, uartMCR, mcrOut2)
	for _, b := range []byte("hello") {
		out(u, uartData, b)
	}
	if got.String() != "hello" {
		t.Errorf("sink got %q", got.String())
	}
	if l.raised != 0 {
		t.Error("interrupt without enable")
	}
	out(u, uartIER, ierTHRE)
	if !l.level {
		t.Fatal("no transmitter-empty interrupt on enable")
	}
	if v := in(u, uartIIR) & 0x0F; v != iirTHRE {
		t.Errorf("IIR %#x", v)
	}
	if l.level {
		t.Error("reading IIR did not clear the interrupt")
	}
	out(u, uartData, '!')
	if !l.level {
		t.Error("no interrupt after the next byte")
	}
}

func TestUART_Receive_FIFOBoundsAndRoom(t *testing.T) {
	l := &line{}
	u := NewUART(l.set, func(byte) {})
	rooms := 0
	u.Room = func() { rooms++ }
	if n := u.Receive([]byte("ab")); n != 1 {
		t.Errorf("without FIFO %d bytes taken, want 1", n)
	}
	out(u, uartIIR, fcrEnable|fcrClearRx)
	out(u, uartMCR, mcrOut2)
	out(u, uartIER, ierRx)
	if n := u.Receive(bytes.Repeat([]byte{7}, 40)); n != uartFIFO {
		t.Errorf("FIFO took %d bytes", n)
	}
	if !l.level {
		t.Error("no receive interrupt")
	}
	for i := range uartFIFO {
		if in(u, uartLSR)&lsrData == 0 {
			t.Fatalf("no data after %d bytes", i)
		}
		if v := in(u, uartData); v != 7 {
			t.Fatalf("byte %d is %d", i, v)
		}
	}
	if l.level || in(u, uartLSR)&lsrData != 0 {
		t.Error("still data after the last byte")
	}
	if rooms != 1 {
		t.Errorf("room announced %d times, want once", rooms)
	}
}

func TestUART_LoopbackOverrun(t *testing.T) {
	u := NewUART((&line{}).set, func(byte) { t.Error("loopback left the chip") })
	out(u, uartIIR, fcrEnable)
	out(u, uartMCR, mcrLoop)
	for range uartFIFO + 1 {
		out(u, uartData, 1)
	}
	if v := in(u, uartLSR); v&lsrOverrun == 0 {
		t.Error("no overrun")
	}
	if v := in(u, uartLSR); v&lsrOverrun != 0 {
		t.Error("overrun not cleared by reading")
	}
	if n := u.Receive([]byte{1}); n != 0 {
		t.Error("received in loopback")
	}
}

func TestRTC_ReadAndSet(t *testing.T) {
	host := time.Date(2026, 11, 21, 23, 59, 58, 0, time.UTC)
	r := NewRTC()
	r.Now = func() time.Time { return host }
	reg := func(i byte) byte { out(r, 0, i); return in(r, 1) }
	set := func(i, v byte) { out(r, 0, i); out(r, 1, v) }
	for i, want := range map[byte]byte{rtcSeconds: 0x58, rtcMinutes: 0x59, rtcHours: 0x23, rtcWeekday: 7,
		rtcDay: 0x21, rtcMonth: 0x11, rtcYear: 0x26, rtcCentury: 0x20, rtcD: 0x80} {
		if got := reg(i); got != want {
			t.Errorf("register %#x reads %#x, want %#x", i, got, want)
		}
	}
	set(rtcB, rtcB24h|rtcBBinary)
	if got := reg(rtcSeconds); got != 58 {
		t.Errorf("binary seconds %d", got)
	}
	set(rtcB, 0) // 12 hours, BCD
	if got := reg(rtcHours); got != 0x91 {
		t.Errorf("11 pm reads %#x", got)
	}
	set(rtcB, rtcB24h)
	set(rtcHours, 0x08)
	set(rtcMinutes, 0x30)
	host = host.Add(1 * time.Second)
	if reg(rtcHours) != 0x08 || reg(rtcMinutes) != 0x30 || reg(rtcSeconds) != 0x59 {
		t.Errorf("after setting: %x:%x:%x", reg(rtcHours), reg(rtcMinutes), reg(rtcSeconds))
	}
	if reg(rtcA)&0x80 != 0 {
		t.Error("update in progress")
	}
}

func TestPM_SleepResetButton(t *testing.T) {
	var offs, resets int
	l := &line{}
	d := NewPM(l.set, func() { offs++ }, func() { resets++ })
	d.PortOut(PMControl, []byte{0, 1 << 5 >> 0}) // SLP_EN with SLP_TYP 0
	if offs != 0 {
		t.Error("S0 switched off")
	}
	v := uint16(PMSleepOff<<pmSleepShift | pmSleepEnable)
	d.PortOut(PMControl, []byte{byte(v), byte(v >> 8)})
	if offs != 1 {
		t.Errorf("S5: %d power-offs", offs)
	}
	if in(d, PMControl)&pmSCIEnable == 0 {
		t.Error("not in ACPI mode")
	}
	if in(d, PMControl+1)&(pmSleepEnable>>8) != 0 {
		t.Error("SLP_EN can be read back")
	}
	out(d, PMReset, 0)
	if resets != 0 {
		t.Error("reset by another value")
	}
	out(d, PMReset, PMResetValue)
	if resets != 1 {
		t.Error("no reset")
	}
	d.PressPowerButton()
	if l.level {
		t.Error("SCI without enable")
	}
	d.PortOut(PMEnable, []byte{0, pmPowerButton >> 8})
	if !l.level {
		t.Error("no SCI")
	}
	d.PortOut(PMStatus, []byte{0, pmPowerButton >> 8})
	if l.level {
		t.Error("writing one did not clear the button")
	}
}

// stuck blocks until released.
type stuck struct {
	release chan struct{}
	got     bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.release
	return s.got.Write(p)
}

// A console nobody reads must neither block the guest nor grow without bound.
func TestRegressRow35_Output_StuckReader_LosesAndCounts(t *testing.T) {
	s := &stuck{release: make(chan struct{})}
	o := NewOutput(s)
	const n = 3 * outputBuffer
	start := time.Now()
	for range n {
		o.Byte('x')
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("queueing took %v", d)
	}
	close(s.release)
	lost, err := o.Close()
	if err != nil {
		t.Fatal(err)
	}
	if lost == 0 || uint64(s.got.Len())+lost != n {
		t.Errorf("wrote %d, lost %d, of %d", s.got.Len(), lost, n)
	}
	if s.got.Len() > 2*outputBuffer {
		t.Errorf("%d bytes were held", s.got.Len())
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("gone") }

func TestOutput_BrokenReader_IsReported(t *testing.T) {
	o := NewOutput(broken{})
	for _, b := range []byte(strings.Repeat("y", 100)) {
		o.Byte(b)
	}
	if _, err := o.Close(); err == nil {
		t.Error("the error was swallowed")
	}
}

func TestExitPortAndKeyboardReset(t *testing.T) {
	var got uint32
	ExitPort{Exit: func(v uint32) { got = v }}.PortOut(0, []byte{0x78, 0x56, 0x34, 0x12})
	if got != 0x12345678 {
		t.Errorf("exit value %#x", got)
	}
	resets := 0
	k := KeyboardReset{Reset: func() { resets++ }}
	out(k, 0, 0xD1)
	out(k, 0, keyboardPulseReset)
	if resets != 1 || in(k, 0) != 0xFF {
		t.Errorf("%d resets, status %#x", resets, in(k, 0))
	}
}
