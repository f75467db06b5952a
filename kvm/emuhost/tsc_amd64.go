package emuhost

import "time"

// rdtsc reads the time-stamp counter.
func rdtsc() uint64

// tscTime is how long the counter is watched. The error is that of the two readings, some 100 ns each, over it.
const tscTime = 100 * time.Millisecond

// tscKHz measures the frequency of the time-stamp counter, in kHz. QEMU's TCG gives its guest the real counter, and a
// guest kernel that calibrates it while the machine is busy has been seen to get it wrong threefold; then every clock
// in it and in its own guests is wrong for good. So it is told.
func tscKHz() uint64 {
	t0, c0 := tscReading()
	time.Sleep(tscTime)
	t1, c1 := tscReading()
	return uint64(float64(c1-c0) / t1.Sub(t0).Seconds() / 1e3)
}

// tscReading reads the counter and the clock at the same moment: of several tries the one with the least time around
// it, so that being preempted does not matter.
func tscReading() (at time.Time, count uint64) {
	best := time.Duration(1<<63 - 1)
	for range 100 {
		a := time.Now()
		c := rdtsc()
		d := time.Since(a)
		if d < best {
			best, at, count = d, a.Add(d/2), c
		}
	}
	return at, count
}
