; The native runner: a pool of threads that runs a program's items. See runner.py for the words of a program and of an
; item; it also fills in the words in parentheses after a percent sign. A percent sign itself is written twice.
;
; Threads walk the items in order. An item whose dependences are complete is taken part by part: a part belongs to the thread
; that sets its bit in a word of the item. Nobody waits for an item but those that depend on it, so independent items overlap.
;
; Invariants:
; - A word of parts is epoch << 32 | bits. The epoch of a program grows by one with each run; a word of an older epoch
;   counts as empty, and a thread that is late (its epoch is older than the word's) takes nothing any more. So nothing is
;   reset between runs, and a run need not wait for threads that only look around.
; - An item is complete when all its parts are done: its second word is then the epoch. `done` is back at 0 by then.
; - What a run reads is written before the epoch grows; how many parts items have, and memory of programs,
;   changes only when no thread looks at the program (@quiesce): a thread that does has put its address into @slots.
; - Only the thread that holds `owner` runs a program on the pool. Whoever cannot get it works alone.
; - A worker that sleeps has counted itself in `sleepers` before it looked at the ticket for the last time, and
;   the owner looks at `sleepers` after it has moved the ticket. Who wakes takes workers out of `sleepers` and leaves a permit
;   for each. A worker writes its slot before it looks at `open` again; @quiesce reads slots after `open` was closed.
;   These four are sequentially consistent, since each side writes one word and then reads the other's.
; - What the kernels of an item wrote is seen by those of items that depend on it: its last part's `complete` is a
;   release, after `done` has gathered the other parts; @ready acquires it. What a run reads goes with the epoch (release,
;   acquire). Words read without order are hints (`progress`, `present`, `want`) or claimed by compare-and-swap.

@threads = internal global i64 1, align 64
@started = internal global i64 0, align 8
; Threads that take part in a program at most: what the machine has cores for, and fewer where the system refuses more.
@limit = internal global i64 %(most)s, align 8
@capacity = internal global i64 %(most)s, align 8
@missing = internal global i64 0, align 8
@stop = internal global i64 0, align 8
@permits = internal global i64 0, align 8
@owner = internal global i64 0, align 64
@ticket = internal global i64 0, align 64
@open = internal global ptr null, align 64
@present = internal global i64 0, align 64
@sleepers = internal global i64 0, align 64
@mutex = internal global [128 x i8] zeroinitializer, align 64
@wakeup = internal global [128 x i8] zeroinitializer, align 64
@handles = internal global [%(most)s x i64] zeroinitializer, align 8
; The program that each thread looks at, each on a cache line of its own.
@slots = internal global [%(most)s x [8 x i64]] zeroinitializer, align 64
; A program of one item, for @graphc_launch.
@single = internal global [32 x i64] zeroinitializer, align 64
@single.items = internal global [32 x i64] zeroinitializer, align 128
@single.launch = internal global [4 x i64] zeroinitializer, align 64
@single.sync = internal global [%(single_words)s x i64] zeroinitializer, align 64

declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(i64, ptr)
declare i32 @pthread_attr_init(ptr)
declare i32 @pthread_attr_setstacksize(ptr, i64)
declare i32 @pthread_attr_destroy(ptr)
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_signal(ptr)
declare i32 @pthread_cond_broadcast(ptr)
declare i32 @pthread_sigmask(i32, ptr, ptr)
declare i32 @sigfillset(ptr)
declare i32 @sched_yield()
declare i32 @clock_gettime(i32, ptr)

%(float_mode)s

define internal i64 @now() {
  %%t = alloca [2 x i64], align 8
  %%rc = call i32 @clock_gettime(i32 %(clock)s, ptr %%t)
  %%s = load i64, ptr %%t, align 8
  %%p = getelementptr i64, ptr %%t, i64 1
  %%n = load i64, ptr %%p, align 8
  %%ns = mul i64 %%s, 1000000000
  %%r = add i64 %%ns, %%n
  ret i64 %%r
}

; Whether all that an item depends on is complete.
define internal i1 @ready(ptr %%item, i64 %%epoch) {
entry:
  %%p.deps = getelementptr i64, ptr %%item, i64 5
  %%deps = load ptr, ptr %%p.deps, align 8
  %%p.count = getelementptr i64, ptr %%item, i64 6
  %%count = load i64, ptr %%p.count, align 8
  br label %%head
head:
  %%i = phi i64 [ 0, %%entry ], [ %%i1, %%body ]
  %%more = icmp ult i64 %%i, %%count
  br i1 %%more, label %%body, label %%yes
body:
  %%p.sync = getelementptr ptr, ptr %%deps, i64 %%i
  %%sync = load ptr, ptr %%p.sync, align 8
  %%p.complete = getelementptr i64, ptr %%sync, i64 1
  %%complete = load atomic i64, ptr %%p.complete acquire, align 8
  %%over = icmp uge i64 %%complete, %%epoch
  %%i1 = add i64 %%i, 1
  br i1 %%over, label %%head, label %%no
yes:
  ret i1 true
no:
  ret i1 false
}

; Take one part of an item: its number, or -1 if all are taken. Threads begin at parts of their own, so that a thread meets
; the same part of the data in one item after the other.
define internal i64 @claim(ptr %%item, i64 %%epoch, i64 %%me, i64 %%team) {
entry:
  %%p.parts = getelementptr i64, ptr %%item, i64 4
  %%parts = load i64, ptr %%p.parts, align 8
  %%p.sync = getelementptr i64, ptr %%item, i64 7
  %%sync = load ptr, ptr %%p.sync, align 8
  %%tag = shl i64 %%epoch, 32
  %%several = icmp ugt i64 %%parts, 1
  br i1 %%several, label %%place, label %%begin
place:
  %%share = mul i64 %%me, %%parts
  %%own = udiv i64 %%share, %%team
  br label %%begin
begin:
  %%start = phi i64 [ 0, %%entry ], [ %%own, %%place ]
  %%p31 = add i64 %%parts, 31
  %%words = lshr i64 %%p31, 5
  %%word0 = lshr i64 %%start, 5
  %%bit0 = and i64 %%start, 31
  %%above = shl i64 -1, %%bit0
  br label %%next
next:
  %%k = phi i64 [ 0, %%begin ], [ %%k1, %%none ]
  %%first = phi i64 [ %%above, %%begin ], [ -1, %%none ]
  %%sum = add i64 %%word0, %%k
  %%wraps = icmp uge i64 %%sum, %%words
  %%wrapped = sub i64 %%sum, %%words
  %%w = select i1 %%wraps, i64 %%wrapped, i64 %%sum
  %%line = mul i64 %%w, 8
  %%place.w = add i64 %%line, 2
  %%p = getelementptr i64, ptr %%sync, i64 %%place.w
  %%base = mul i64 %%w, 32
  %%rest = sub i64 %%parts, %%base
  %%n = call i64 @llvm.umin.i64(i64 %%rest, i64 32)
  %%beyond = shl i64 1, %%n
  %%full = sub i64 %%beyond, 1
  br label %%look
look:
  %%old = load atomic i64, ptr %%p monotonic, align 8
  %%e = lshr i64 %%old, 32
  %%late = icmp ugt i64 %%e, %%epoch
  br i1 %%late, label %%none, label %%current
current:
  %%same = icmp eq i64 %%e, %%epoch
  %%low = and i64 %%old, 4294967295
  %%taken = select i1 %%same, i64 %%low, i64 0
  %%open = xor i64 %%taken, -1
  %%free = and i64 %%open, %%full
  %%any = icmp ne i64 %%free, 0
  br i1 %%any, label %%try, label %%none
try:
  %%near = and i64 %%free, %%first
  %%has = icmp ne i64 %%near, 0
  %%pick = select i1 %%has, i64 %%near, i64 %%free
  %%b = call i64 @llvm.cttz.i64(i64 %%pick, i1 true)
  %%bit = shl i64 1, %%b
  %%bits = or i64 %%taken, %%bit
  %%new = or i64 %%tag, %%bits
  %%pair = cmpxchg ptr %%p, i64 %%old, i64 %%new acq_rel monotonic
  %%won = extractvalue { i64, i1 } %%pair, 1
  br i1 %%won, label %%got, label %%look
got:
  %%part = add i64 %%base, %%b
  ret i64 %%part
none:
  %%k1 = add i64 %%k, 1
  %%again = icmp ult i64 %%k1, %%words
  br i1 %%again, label %%next, label %%empty
empty:
  ret i64 -1
}

; Run a part that was taken, unless an earlier item has failed, and say that it is done.
define internal void @part(ptr %%program, ptr %%item, i64 %%number, i64 %%part, i64 %%epoch) {
entry:
  %%p.failed = getelementptr i64, ptr %%program, i64 18
  %%failed = load atomic i64, ptr %%p.failed acquire, align 8
  %%skip = icmp ugt i64 %%number, %%failed
  %%p.parts = getelementptr i64, ptr %%item, i64 4
  %%parts = load i64, ptr %%p.parts, align 8
  br i1 %%skip, label %%finish, label %%go
go:
  %%first = load ptr, ptr %%item, align 8
  %%p.count = getelementptr i64, ptr %%item, i64 1
  %%count = load i64, ptr %%p.count, align 8
  br label %%head
head:
  %%i = phi i64 [ 0, %%go ], [ %%i1, %%fine ]
  %%launch = phi ptr [ %%first, %%go ], [ %%launch1, %%fine ]
  %%kernel = load ptr, ptr %%launch, align 8
  %%p.extent = getelementptr i64, ptr %%launch, i64 1
  %%extent = load i64, ptr %%p.extent, align 8
  %%p.args = getelementptr i64, ptr %%launch, i64 2
  %%args = load ptr, ptr %%p.args, align 8
  %%p.error = getelementptr i64, ptr %%launch, i64 3
  %%error = load ptr, ptr %%p.error, align 8
  %%whole = icmp eq i64 %%parts, 1
  br i1 %%whole, label %%call, label %%cut
cut:
  %%a = mul i64 %%extent, %%part
  %%begin.cut = udiv i64 %%a, %%parts
  %%b = add i64 %%a, %%extent
  %%end.cut = udiv i64 %%b, %%parts
  br label %%call
call:
  %%begin = phi i64 [ 0, %%head ], [ %%begin.cut, %%cut ]
  %%end = phi i64 [ %%extent, %%head ], [ %%end.cut, %%cut ]
  call void %%kernel(ptr %%args, i64 %%begin, i64 %%end, ptr %%error)
  %%site = load atomic i64, ptr %%error monotonic, align 8
  %%bad = icmp ne i64 %%site, 0
  br i1 %%bad, label %%fail, label %%fine
fine:
  %%i1 = add i64 %%i, 1
  %%launch1 = getelementptr i64, ptr %%launch, i64 4
  %%more = icmp ult i64 %%i1, %%count
  br i1 %%more, label %%head, label %%finish
fail:
  %%was.failed = atomicrmw umin ptr %%p.failed, i64 %%number acq_rel
  br label %%finish
finish:
  %%p.sync = getelementptr i64, ptr %%item, i64 7
  %%sync = load ptr, ptr %%p.sync, align 8
  %%p.complete = getelementptr i64, ptr %%sync, i64 1
  %%was = atomicrmw add ptr %%sync, i64 1 acq_rel
  %%now = add i64 %%was, 1
  %%last = icmp eq i64 %%now, %%parts
  br i1 %%last, label %%complete, label %%over
complete:
  store atomic i64 0, ptr %%sync monotonic, align 8
  store atomic i64 %%epoch, ptr %%p.complete release, align 8
  br label %%over
over:
  ret void
}

; Take and run parts until none is left to take. A thread with nothing to do (all that is left depends on parts that others
; run) looks on for a while; a worker then leaves (gives 1), the owner stays. Up to so many items ahead are looked at.
define internal i1 @walk(ptr %%program, i64 %%me, i1 %%owns) {
entry:
  %%p.epoch = getelementptr i64, ptr %%program, i64 16
  %%epoch = load atomic i64, ptr %%p.epoch acquire, align 8
  %%p.progress = getelementptr i64, ptr %%program, i64 17
  %%progress = load atomic i64, ptr %%p.progress monotonic, align 8
  %%items = load ptr, ptr %%program, align 8
  %%p.count = getelementptr i64, ptr %%program, i64 1
  %%count = load i64, ptr %%p.count, align 8
  %%p.want = getelementptr i64, ptr %%program, i64 19
  %%want = load atomic i64, ptr %%p.want monotonic, align 8
  %%seat = urem i64 %%me, %%want
  br label %%scan
scan:
  %%low = phi i64 [ %%progress, %%entry ], [ %%low.taken, %%after ], [ %%low.idle, %%idle.next ]
  %%idle = phi i64 [ 0, %%entry ], [ 0, %%after ], [ %%idle1, %%idle.next ]
  %%since = phi i64 [ 0, %%entry ], [ 0, %%after ], [ %%since1, %%idle.next ]
  br label %%each
each:
  %%i = phi i64 [ %%low, %%scan ], [ %%i.next, %%pass ]
  %%low.now = phi i64 [ %%low, %%scan ], [ %%low.pass, %%pass ]
  %%far = add i64 %%low.now, %(window)s
  %%limit = call i64 @llvm.umin.i64(i64 %%far, i64 %%count)
  %%inside = icmp ult i64 %%i, %%limit
  br i1 %%inside, label %%consider, label %%nothing
consider:
  %%at = shl i64 %%i, 4
  %%item = getelementptr i64, ptr %%items, i64 %%at
  %%is.ready = call i1 @ready(ptr %%item, i64 %%epoch)
  br i1 %%is.ready, label %%take, label %%pass
take:
  %%part = call i64 @claim(ptr %%item, i64 %%epoch, i64 %%seat, i64 %%want)
  %%empty = icmp slt i64 %%part, 0
  br i1 %%empty, label %%exhausted, label %%help
exhausted:
  %%lowest = icmp eq i64 %%i, %%low.now
  %%low.up = add i64 %%low.now, 1
  %%low.exhausted = select i1 %%lowest, i64 %%low.up, i64 %%low.now
  br label %%pass
pass:
  %%low.pass = phi i64 [ %%low.now, %%consider ], [ %%low.exhausted, %%exhausted ]
  %%i.next = add i64 %%i, 1
  br label %%each
help:
  br i1 %%owns, label %%mark, label %%helpers
mark:
  store atomic i64 %%low.now, ptr %%p.progress monotonic, align 8
  br label %%helpers
helpers:
  %%p.useful = getelementptr i64, ptr %%item, i64 8
  %%useful0 = load i64, ptr %%p.useful, align 8
  %%useful = call i64 @llvm.umin.i64(i64 %%useful0, i64 %%want)
  %%company = icmp ugt i64 %%useful, 1
  br i1 %%company, label %%asleep, label %%run
asleep:
  ; With the sum at the ticket: whoever went to sleep before that is seen here, whoever did after has seen the ticket.
  %%sleeping = load atomic i64, ptr @sleepers seq_cst, align 8
  %%any = icmp ne i64 %%sleeping, 0
  br i1 %%any, label %%rouse, label %%run
rouse:
  %%others = sub i64 %%useful, 1
  %%present = load atomic i64, ptr @present monotonic, align 8
  %%enough = icmp uge i64 %%present, %%others
  br i1 %%enough, label %%run, label %%call
call:
  call void @wake(i64 %%others)
  br label %%run
run:
  %%part.run = phi i64 [ %%part, %%helpers ], [ %%part, %%asleep ], [ %%part, %%rouse ], [ %%part, %%call ], [ %%part.next, %%run ]
  call void @part(ptr %%program, ptr %%item, i64 %%i, i64 %%part.run, i64 %%epoch)
  %%part.next = call i64 @claim(ptr %%item, i64 %%epoch, i64 %%seat, i64 %%want)
  %%out = icmp slt i64 %%part.next, 0
  br i1 %%out, label %%after, label %%run
after:
  %%was.lowest = icmp eq i64 %%i, %%low.now
  %%low.after = add i64 %%low.now, 1
  %%low.taken = select i1 %%was.lowest, i64 %%low.after, i64 %%low.now
  br label %%scan
nothing:
  %%over = icmp uge i64 %%low.now, %%count
  br i1 %%over, label %%end, label %%wait
wait:
  %(pause)s
  %%idle1 = add i64 %%idle, 1
  %%round = and i64 %%idle1, 63
  %%look = icmp eq i64 %%round, 0
  br i1 %%look, label %%clock, label %%idle.next
clock:
  %%time = call i64 @now()
  %%fresh = icmp eq i64 %%since, 0
  %%since.clock = select i1 %%fresh, i64 %%time, i64 %%since
  %%spent = sub i64 %%time, %%since.clock
  %%long = icmp sgt i64 %%spent, %(patience)s
  br i1 %%long, label %%tired, label %%idle.next
tired:
  br i1 %%owns, label %%yield, label %%end
yield:
  ; Whoever has the part that this waits for may be waiting for a core.
  %%y = call i32 @sched_yield()
  br label %%idle.next
idle.next:
  %%low.idle = phi i64 [ %%low.now, %%wait ], [ %%low.now, %%clock ], [ %%low.now, %%yield ]
  %%since1 = phi i64 [ %%since, %%wait ], [ %%since.clock, %%clock ], [ %%since.clock, %%yield ]
  br label %%scan
end:
  %%gives.up = phi i1 [ false, %%nothing ], [ true, %%tired ]
  ret i1 %%gives.up
}

; A worker's life: take part in the open program, spin for a bounded time, then sleep until woken.
define internal ptr @worker(ptr %%number) {
entry:
  %%mode = call i64 @float_enter()
  %%me = ptrtoint ptr %%number to i64
  %%slot = getelementptr [8 x i64], ptr @slots, i64 %%me
  br label %%serve
serve:
  %%seen = load atomic i64, ptr @ticket seq_cst, align 8
  %%program = load atomic ptr, ptr @open seq_cst, align 8
  %%none = icmp eq ptr %%program, null
  br i1 %%none, label %%idle, label %%enter
enter:
  %%address = ptrtoint ptr %%program to i64
  %%s0 = atomicrmw xchg ptr %%slot, i64 %%address seq_cst
  %%still = load atomic ptr, ptr @open seq_cst, align 8
  %%same = icmp eq ptr %%still, %%program
  br i1 %%same, label %%seat, label %%leave
seat:
  %%p.want = getelementptr i64, ptr %%program, i64 19
  %%want = load atomic i64, ptr %%p.want monotonic, align 8
  %%before = atomicrmw add ptr @present, i64 1 monotonic
  %%with = add i64 %%before, 1
  %%room = icmp ult i64 %%with, %%want
  br i1 %%room, label %%help, label %%stand
help:
  %%gave.up = call i1 @walk(ptr %%program, i64 %%me, i1 false)
  br label %%stand
stand:
  %%tired = phi i1 [ false, %%seat ], [ %%gave.up, %%help ]
  %%p0 = atomicrmw sub ptr @present, i64 1 monotonic
  br label %%leave
leave:
  %%rests = phi i1 [ false, %%enter ], [ %%tired, %%stand ]
  store atomic i64 0, ptr %%slot release, align 8
  br i1 %%same, label %%left, label %%serve
left:
  br i1 %%rests, label %%sleep, label %%idle
idle:
  %%start = call i64 @now()
  %%deadline = add i64 %%start, %(spin)s
  br label %%round
round:
  br label %%spin
spin:
  %%i = phi i64 [ 0, %%round ], [ %%i1, %%quiet ]
  %%t = load atomic i64, ptr @ticket acquire, align 8
  %%new = icmp ne i64 %%t, %%seen
  br i1 %%new, label %%serve, label %%quiet
quiet:
  %(pause)s
  %%i1 = add i64 %%i, 1
  %%more = icmp ult i64 %%i1, 32
  br i1 %%more, label %%spin, label %%clock
clock:
  %%time = call i64 @now()
  %%early = icmp slt i64 %%time, %%deadline
  br i1 %%early, label %%round, label %%sleep
sleep:
  %%l = call i32 @pthread_mutex_lock(ptr @mutex)
  %%s = atomicrmw add ptr @sleepers, i64 1 seq_cst
  %%t2 = load atomic i64, ptr @ticket seq_cst, align 8
  %%new2 = icmp ne i64 %%t2, %%seen
  br i1 %%new2, label %%stay, label %%look
stay:
  %%s1 = atomicrmw sub ptr @sleepers, i64 1 seq_cst
  br label %%up
look:
  %%stopped = load atomic i64, ptr @stop seq_cst, align 8
  %%over = icmp ne i64 %%stopped, 0
  br i1 %%over, label %%gone, label %%allowed
allowed:
  %%permits = load i64, ptr @permits, align 8
  %%may = icmp ne i64 %%permits, 0
  br i1 %%may, label %%permitted, label %%wait
wait:
  %%w = call i32 @pthread_cond_wait(ptr @wakeup, ptr @mutex)
  br label %%look
permitted:
  %%permits1 = sub i64 %%permits, 1
  store i64 %%permits1, ptr @permits, align 8
  br label %%up
up:
  %%u = call i32 @pthread_mutex_unlock(ptr @mutex)
  br label %%serve
gone:
  %%u2 = call i32 @pthread_mutex_unlock(ptr @mutex)
  ret ptr null
}

; Start workers until there are %%want; with fewer the parts are still all done. Signals stay with Python's threads.
define internal void @start(i64 %%want) noinline cold {
entry:
  %%attr = alloca [128 x i8], align 16
  %%all = alloca [128 x i8], align 16
  %%old = alloca [128 x i8], align 16
  %%a = call i32 @pthread_attr_init(ptr %%attr)
  %%b = call i32 @pthread_attr_setstacksize(ptr %%attr, i64 %(stack)s)
  %%c = call i32 @sigfillset(ptr %%all)
  %%d = call i32 @pthread_sigmask(i32 %(setmask)s, ptr %%all, ptr %%old)
  br label %%next
next:
  %%n = load atomic i64, ptr @started monotonic, align 8
  %%less = icmp ult i64 %%n, %%want
  br i1 %%less, label %%create, label %%end
create:
  %%handle = getelementptr i64, ptr @handles, i64 %%n
  %%number = add i64 %%n, 1
  %%argument = inttoptr i64 %%number to ptr
  %%rc = call i32 @pthread_create(ptr %%handle, ptr %%attr, ptr @worker, ptr %%argument)
  %%ok = icmp eq i32 %%rc, 0
  br i1 %%ok, label %%count, label %%short
count:
  store atomic i64 %%number, ptr @started monotonic, align 8
  br label %%next
short:
  ; No more are tried; whoever runs the program says so.
  store atomic i64 %%number, ptr @capacity monotonic, align 8
  %%lack = sub i64 %%want, %%n
  store atomic i64 %%lack, ptr @missing monotonic, align 8
  br label %%end
end:
  %%e = call i32 @pthread_sigmask(i32 %(setmask)s, ptr %%old, ptr null)
  %%f = call i32 @pthread_attr_destroy(ptr %%attr)
  ret void
}

; Wake up to so many sleeping workers.
define internal void @wake(i64 %%count) noinline {
entry:
  %%l = call i32 @pthread_mutex_lock(ptr @mutex)
  %%asleep = load atomic i64, ptr @sleepers monotonic, align 8
  %%all = icmp uge i64 %%count, %%asleep
  %%number = call i64 @llvm.umin.i64(i64 %%count, i64 %%asleep)
  %%s = atomicrmw sub ptr @sleepers, i64 %%number seq_cst
  %%permits = load i64, ptr @permits, align 8
  %%permits1 = add i64 %%permits, %%number
  store i64 %%permits1, ptr @permits, align 8
  br i1 %%all, label %%everyone, label %%one
everyone:
  %%b = call i32 @pthread_cond_broadcast(ptr @wakeup)
  br label %%end
one:
  %%i = phi i64 [ 0, %%entry ], [ %%i1, %%one ]
  %%c = call i32 @pthread_cond_signal(ptr @wakeup)
  %%i1 = add i64 %%i, 1
  %%more = icmp ult i64 %%i1, %%number
  br i1 %%more, label %%one, label %%end
end:
  %%u = call i32 @pthread_mutex_unlock(ptr @mutex)
  ret void
}

; Wait until no worker looks at a program that is not open.
define internal void @quiesce(ptr %%program) {
entry:
  %%address = ptrtoint ptr %%program to i64
  %%started = load atomic i64, ptr @started monotonic, align 8
  br label %%next
next:
  %%i = phi i64 [ 1, %%entry ], [ %%i1, %%free ]
  %%more = icmp ule i64 %%i, %%started
  br i1 %%more, label %%look, label %%end
look:
  %%p = getelementptr [8 x i64], ptr @slots, i64 %%i
  %%at = load atomic i64, ptr %%p seq_cst, align 8
  %%busy = icmp eq i64 %%at, %%address
  br i1 %%busy, label %%wait, label %%free
wait:
  %%y = call i32 @sched_yield()
  br label %%look
free:
  %%i1 = add i64 %%i, 1
  br label %%next
end:
  ret void
}

; How many parts each item has on so many threads: one if it is not worth two, or there is one thread; else up to `finer` for
; each, so that a thread that is late does not hold up the others, and as many for each.
define internal void @prepare(ptr %%program, i64 %%team) noinline {
entry:
  call void @quiesce(ptr %%program)
  %%items = load ptr, ptr %%program, align 8
  %%p.count = getelementptr i64, ptr %%program, i64 1
  %%count = load i64, ptr %%p.count, align 8
  %%p.team = getelementptr i64, ptr %%program, i64 3
  store i64 %%team, ptr %%p.team, align 8
  %%alone = icmp eq i64 %%team, 1
  %%most = mul i64 %%team, %(finer)s
  %%finest = select i1 %%alone, i64 1, i64 %%most
  br label %%head
head:
  %%i = phi i64 [ 0, %%entry ], [ %%i1, %%body ]
  %%more = icmp ult i64 %%i, %%count
  br i1 %%more, label %%body, label %%end
body:
  %%at = shl i64 %%i, 4
  %%item = getelementptr i64, ptr %%items, i64 %%at
  %%p.extent = getelementptr i64, ptr %%item, i64 2
  %%extent = load i64, ptr %%p.extent, align 8
  %%p.worth = getelementptr i64, ptr %%item, i64 3
  %%worth = load i64, ptr %%p.worth, align 8
  %%fine = call i64 @llvm.umin.i64(i64 %%worth, i64 %%finest)
  %%rest = urem i64 %%fine, %%team
  %%even = sub i64 %%fine, %%rest
  %%few = icmp ult i64 %%fine, %%team
  %%wanted = select i1 %%few, i64 %%fine, i64 %%even
  %%parts0 = call i64 @llvm.umin.i64(i64 %%wanted, i64 %%extent)
  %%parts = call i64 @llvm.umax.i64(i64 %%parts0, i64 1)
  %%p.parts = getelementptr i64, ptr %%item, i64 4
  store i64 %%parts, ptr %%p.parts, align 8
  %%i1 = add i64 %%i, 1
  br label %%head
end:
  ret void
}

; Before the epoch does not fit its half of a word: as if the program had never run.
define internal void @renew(ptr %%program) noinline cold {
  call void @quiesce(ptr %%program)
  %%p.sync = getelementptr i64, ptr %%program, i64 9
  %%sync = load ptr, ptr %%p.sync, align 8
  %%p.words = getelementptr i64, ptr %%program, i64 10
  %%words = load i64, ptr %%p.words, align 8
  %%bytes = shl i64 %%words, 3
  call void @llvm.memset.p0.i64(ptr align 8 %%sync, i8 0, i64 %%bytes, i1 false)
  %%p.epoch = getelementptr i64, ptr %%program, i64 16
  store atomic i64 0, ptr %%p.epoch monotonic, align 8
  ret void
}

; Run a program on %%want threads, by the owner of the pool. Returns when every item is complete.
define internal void @together(ptr %%program, i64 %%want) {
entry:
  %%p.epoch = getelementptr i64, ptr %%program, i64 16
  %%epoch0 = load atomic i64, ptr %%p.epoch monotonic, align 8
  %%worn = icmp uge i64 %%epoch0, 4294967294
  br i1 %%worn, label %%again, label %%publish
again:
  call void @renew(ptr %%program)
  br label %%publish
publish:
  %%p.progress = getelementptr i64, ptr %%program, i64 17
  store atomic i64 0, ptr %%p.progress monotonic, align 8
  %%p.want = getelementptr i64, ptr %%program, i64 19
  store atomic i64 %%want, ptr %%p.want monotonic, align 8
  %%epoch1 = load atomic i64, ptr %%p.epoch monotonic, align 8
  %%epoch = add i64 %%epoch1, 1
  store atomic i64 %%epoch, ptr %%p.epoch release, align 8
  %%o1 = atomicrmw xchg ptr @open, ptr %%program seq_cst
  %%t = atomicrmw add ptr @ticket, i64 1 seq_cst
  %%w = call i1 @walk(ptr %%program, i64 0, i1 true)
  %%items = load ptr, ptr %%program, align 8
  %%p.count = getelementptr i64, ptr %%program, i64 1
  %%count = load i64, ptr %%p.count, align 8
  %%at = shl i64 %%count, 4
  %%end.item = getelementptr i64, ptr %%items, i64 %%at
  br label %%spin
spin:
  %%i = phi i64 [ 0, %%publish ], [ %%i1, %%still ], [ %%i, %%yield ]
  %%all = call i1 @ready(ptr %%end.item, i64 %%epoch)
  br i1 %%all, label %%close, label %%wait
wait:
  %(pause)s
  %%i1 = add i64 %%i, 1
  %%more = icmp ult i64 %%i1, 2000
  br i1 %%more, label %%still, label %%yield
still:
  br label %%spin
yield:
  ; The thread that has the last part may be waiting for a core.
  %%y = call i32 @sched_yield()
  br label %%spin
close:
  store atomic ptr null, ptr @open seq_cst, align 8
  ret void
}

; Run a program on this thread, item after item.
define internal void @alone(ptr %%program) {
entry:
  %%items = load ptr, ptr %%program, align 8
  %%p.count = getelementptr i64, ptr %%program, i64 1
  %%count = load i64, ptr %%p.count, align 8
  br label %%head
head:
  %%i = phi i64 [ 0, %%entry ], [ %%i1, %%next ]
  %%more = icmp ult i64 %%i, %%count
  br i1 %%more, label %%body, label %%end
body:
  %%at = shl i64 %%i, 4
  %%item = getelementptr i64, ptr %%items, i64 %%at
  %%first = load ptr, ptr %%item, align 8
  %%p.launches = getelementptr i64, ptr %%item, i64 1
  %%launches = load i64, ptr %%p.launches, align 8
  br label %%each
each:
  %%k = phi i64 [ 0, %%body ], [ %%k1, %%fine ]
  %%launch = phi ptr [ %%first, %%body ], [ %%launch1, %%fine ]
  %%kernel = load ptr, ptr %%launch, align 8
  %%p.extent = getelementptr i64, ptr %%launch, i64 1
  %%extent = load i64, ptr %%p.extent, align 8
  %%p.args = getelementptr i64, ptr %%launch, i64 2
  %%args = load ptr, ptr %%p.args, align 8
  %%p.error = getelementptr i64, ptr %%launch, i64 3
  %%error = load ptr, ptr %%p.error, align 8
  call void %%kernel(ptr %%args, i64 0, i64 %%extent, ptr %%error)
  %%site = load atomic i64, ptr %%error monotonic, align 8
  %%bad = icmp ne i64 %%site, 0
  br i1 %%bad, label %%fail, label %%fine
fine:
  %%k1 = add i64 %%k, 1
  %%launch1 = getelementptr i64, ptr %%launch, i64 4
  %%another = icmp ult i64 %%k1, %%launches
  br i1 %%another, label %%each, label %%next
next:
  %%i1 = add i64 %%i, 1
  br label %%head
fail:
  %%p.failed = getelementptr i64, ptr %%program, i64 18
  store atomic i64 %%i, ptr %%p.failed monotonic, align 8
  br label %%end
end:
  ret void
}

define internal i1 @own() {
  %%pair = cmpxchg ptr @owner, i64 0, i64 1 acquire monotonic
  %%got = extractvalue { i64, i1 } %%pair, 1
  ret i1 %%got
}

; How many threads may work on what has use for so many: starts those that are missing.
define internal i64 @gather(i64 %%useful) {
entry:
  %%threads = load atomic i64, ptr @threads monotonic, align 8
  %%capacity = load atomic i64, ptr @capacity monotonic, align 8
  %%m = call i64 @llvm.umin.i64(i64 %%threads, i64 %%capacity)
  %%want = call i64 @llvm.umin.i64(i64 %%m, i64 %%useful)
  %%others = sub i64 %%want, 1
  %%have = load atomic i64, ptr @started monotonic, align 8
  %%enough = icmp uge i64 %%have, %%others
  br i1 %%enough, label %%end, label %%grow
grow:
  call void @start(i64 %%others)
  %%have1 = load atomic i64, ptr @started monotonic, align 8
  %%with = add i64 %%have1, 1
  %%got = call i64 @llvm.umin.i64(i64 %%want, i64 %%with)
  ret i64 %%got
end:
  ret i64 %%want
}

; Patch the arguments whose pointer has changed since the last run, and run. Gives 1 after an error, else 0; 2 more if
; threads could not be started, which is said once.
define i64 @graphc_run_program(ptr %%program) {
entry:
  %%mode = call i64 @float_enter()
  %%p.failed = getelementptr i64, ptr %%program, i64 18
  store atomic i64 -1, ptr %%p.failed monotonic, align 8
  %%p.pointers = getelementptr i64, ptr %%program, i64 11
  %%pointers = load ptr, ptr %%p.pointers, align 8
  %%p.known = getelementptr i64, ptr %%program, i64 12
  %%known = load ptr, ptr %%p.known, align 8
  %%p.number = getelementptr i64, ptr %%program, i64 13
  %%number = load i64, ptr %%p.number, align 8
  %%p.starts = getelementptr i64, ptr %%program, i64 14
  %%starts = load ptr, ptr %%p.starts, align 8
  %%p.patches = getelementptr i64, ptr %%program, i64 15
  %%patches = load ptr, ptr %%p.patches, align 8
  br label %%head
head:
  %%i = phi i64 [ 0, %%entry ], [ %%i1, %%next ]
  %%more = icmp ult i64 %%i, %%number
  br i1 %%more, label %%compare, label %%run
compare:
  %%p.new = getelementptr i64, ptr %%pointers, i64 %%i
  %%new = load i64, ptr %%p.new, align 8
  %%p.old = getelementptr i64, ptr %%known, i64 %%i
  %%old = load i64, ptr %%p.old, align 8
  %%same = icmp eq i64 %%new, %%old
  br i1 %%same, label %%next, label %%patch
patch:
  store i64 %%new, ptr %%p.old, align 8
  %%p.first = getelementptr i64, ptr %%starts, i64 %%i
  %%first = load i64, ptr %%p.first, align 8
  %%p.last = getelementptr i64, ptr %%p.first, i64 1
  %%last = load i64, ptr %%p.last, align 8
  br label %%each
each:
  %%k = phi i64 [ %%first, %%patch ], [ %%k1, %%word ]
  %%left = icmp ult i64 %%k, %%last
  br i1 %%left, label %%word, label %%next
word:
  %%twice = shl i64 %%k, 1
  %%p.slot = getelementptr i64, ptr %%patches, i64 %%twice
  %%slot = load ptr, ptr %%p.slot, align 8
  %%p.offset = getelementptr i64, ptr %%p.slot, i64 1
  %%offset = load i64, ptr %%p.offset, align 8
  %%sum = add i64 %%new, %%offset
  store i64 %%sum, ptr %%slot, align 8
  %%k1 = add i64 %%k, 1
  br label %%each
next:
  %%i1 = add i64 %%i, 1
  br label %%head
run:
  %%p.width = getelementptr i64, ptr %%program, i64 4
  %%width = load i64, ptr %%p.width, align 8
  %%threads = load atomic i64, ptr @threads monotonic, align 8
  %%usable = call i64 @llvm.umin.i64(i64 %%width, i64 %%threads)
  %%several = icmp ugt i64 %%usable, 1
  br i1 %%several, label %%try, label %%alone
try:
  %%got = call i1 @own()
  br i1 %%got, label %%gather, label %%alone
gather:
  %%want = call i64 @gather(i64 %%width)
  %%still = icmp ugt i64 %%want, 1
  br i1 %%still, label %%team, label %%short
short:
  store atomic i64 0, ptr @owner release, align 8
  br label %%alone
team:
  %%p.team = getelementptr i64, ptr %%program, i64 3
  %%before = load i64, ptr %%p.team, align 8
  %%capacity = load atomic i64, ptr @capacity monotonic, align 8
  %%most = call i64 @llvm.umin.i64(i64 %%threads, i64 %%capacity)
  %%ready = icmp eq i64 %%before, %%most
  br i1 %%ready, label %%together, label %%prepare
prepare:
  call void @prepare(ptr %%program, i64 %%most)
  br label %%together
together:
  call void @together(ptr %%program, i64 %%want)
  store atomic i64 0, ptr @owner release, align 8
  br label %%end
alone:
  call void @alone(ptr %%program)
  br label %%end
end:
  call void @float_leave(i64 %%mode)
  %%failed = load atomic i64, ptr %%p.failed acquire, align 8
  %%bad = icmp ne i64 %%failed, -1
  %%r = zext i1 %%bad to i64
  %%missing = load atomic i64, ptr @missing monotonic, align 8
  %%lacks = icmp sgt i64 %%missing, 0
  %%r2 = or i64 %%r, 2
  %%result = select i1 %%lacks, i64 %%r2, i64 %%r
  ret i64 %%result
}

; One kernel over [0, extent) in up to %%parts parts. Gives 1 after an error, else 0.
define i64 @graphc_launch(ptr %%kernel, i64 %%extent, i64 %%parts, ptr %%args, ptr %%error) {
entry:
  %%mode = call i64 @float_enter()
  %%pieces = call i64 @llvm.umin.i64(i64 %%parts, i64 %%extent)
  %%threads = load atomic i64, ptr @threads monotonic, align 8
  %%usable = call i64 @llvm.umin.i64(i64 %%pieces, i64 %%threads)
  %%several = icmp ugt i64 %%usable, 1
  br i1 %%several, label %%try, label %%alone
try:
  %%got = call i1 @own()
  br i1 %%got, label %%gather, label %%alone
gather:
  %%want = call i64 @gather(i64 %%usable)
  %%still = icmp ugt i64 %%want, 1
  br i1 %%still, label %%team, label %%short
short:
  store atomic i64 0, ptr @owner release, align 8
  br label %%alone
team:
  call void @quiesce(ptr @single)
  store ptr @single.items, ptr @single, align 8
  store i64 1, ptr getelementptr (i64, ptr @single, i64 1), align 8
  store ptr @single.sync, ptr getelementptr (i64, ptr @single, i64 9), align 8
  store i64 %(single_words)s, ptr getelementptr (i64, ptr @single, i64 10), align 8
  store atomic i64 -1, ptr getelementptr (i64, ptr @single, i64 18) monotonic, align 8
  store ptr @single.launch, ptr @single.items, align 8
  store i64 1, ptr getelementptr (i64, ptr @single.items, i64 1), align 8
  store i64 %%want, ptr getelementptr (i64, ptr @single.items, i64 4), align 8
  store ptr @single.sync, ptr getelementptr (i64, ptr @single.items, i64 7), align 8
  store i64 %%want, ptr getelementptr (i64, ptr @single.items, i64 8), align 8
  ; What follows the last item depends on it.
  store ptr getelementptr (i64, ptr @single.items, i64 7), ptr getelementptr (i64, ptr @single.items, i64 21), align 8
  store i64 1, ptr getelementptr (i64, ptr @single.items, i64 22), align 8
  store ptr %%kernel, ptr @single.launch, align 8
  store i64 %%extent, ptr getelementptr (i64, ptr @single.launch, i64 1), align 8
  store ptr %%args, ptr getelementptr (i64, ptr @single.launch, i64 2), align 8
  store ptr %%error, ptr getelementptr (i64, ptr @single.launch, i64 3), align 8
  call void @together(ptr @single, i64 %%want)
  store atomic i64 0, ptr @owner release, align 8
  br label %%end
alone:
  call void %%kernel(ptr %%args, i64 0, i64 %%extent, ptr %%error)
  br label %%end
end:
  call void @float_leave(i64 %%mode)
  %%site = load atomic i64, ptr %%error monotonic, align 8
  %%failed = icmp ne i64 %%site, 0
  %%r = zext i1 %%failed to i64
  ret i64 %%r
}

; A table of launches, {kernel, extent, parts, id, number of arguments, arguments...} each, one after the other. Stops after
; a launch that reported an error, and puts its id into error[2].
define i64 @graphc_run(ptr %%table, i64 %%count, ptr %%error) {
entry:
  br label %%head
head:
  %%i = phi i64 [ 0, %%entry ], [ %%i1, %%fine ]
  %%p = phi ptr [ %%table, %%entry ], [ %%p1, %%fine ]
  %%more = icmp ult i64 %%i, %%count
  br i1 %%more, label %%body, label %%end
body:
  %%kernel = load ptr, ptr %%p, align 8
  %%p.extent = getelementptr i64, ptr %%p, i64 1
  %%extent = load i64, ptr %%p.extent, align 8
  %%p.parts = getelementptr i64, ptr %%p, i64 2
  %%parts = load i64, ptr %%p.parts, align 8
  %%p.number = getelementptr i64, ptr %%p, i64 4
  %%number = load i64, ptr %%p.number, align 8
  %%args = getelementptr i64, ptr %%p, i64 5
  %%failed = call i64 @graphc_launch(ptr %%kernel, i64 %%extent, i64 %%parts, ptr %%args, ptr %%error)
  %%bad = icmp ne i64 %%failed, 0
  br i1 %%bad, label %%stop, label %%fine
fine:
  %%i1 = add i64 %%i, 1
  %%p1 = getelementptr i64, ptr %%args, i64 %%number
  br label %%head
stop:
  %%p.id = getelementptr i64, ptr %%p, i64 3
  %%id = load i64, ptr %%p.id, align 8
  %%e = getelementptr i64, ptr %%error, i64 2
  store i64 %%id, ptr %%e, align 8
  br label %%end
end:
  %%r = phi i64 [ 0, %%head ], [ 1, %%stop ]
  ret i64 %%r
}

; Before a program's memory goes.
define i64 @graphc_forget(ptr %%program) {
  call void @quiesce(ptr %%program)
  ret i64 0
}

define i64 @graphc_get_threads() {
  %%n = load atomic i64, ptr @threads monotonic, align 8
  ret i64 %%n
}

define i64 @graphc_set_threads(i64 %%n) {
  %%a = call i64 @llvm.smax.i64(i64 %%n, i64 1)
  %%b = call i64 @llvm.umin.i64(i64 %%a, i64 %(most)s)
  store atomic i64 %%b, ptr @threads monotonic, align 8
  %%limit = load atomic i64, ptr @limit monotonic, align 8
  store atomic i64 %%limit, ptr @capacity monotonic, align 8
  ret i64 %%b
}

define i64 @graphc_set_limit(i64 %%n) {
  %%a = call i64 @llvm.smax.i64(i64 %%n, i64 1)
  %%b = call i64 @llvm.umin.i64(i64 %%a, i64 %(most)s)
  store atomic i64 %%b, ptr @limit monotonic, align 8
  store atomic i64 %%b, ptr @capacity monotonic, align 8
  ret i64 %%b
}

define i64 @graphc_workers() {
  %%n = load atomic i64, ptr @started monotonic, align 8
  ret i64 %%n
}

; How many threads could not be started; said once.
define i64 @graphc_missing() {
  %%n = atomicrmw xchg ptr @missing, i64 0 monotonic
  ret i64 %%n
}

; At first use, and in the child of a fork, where no worker exists.
define i64 @graphc_reset() {
  %%a = call i32 @pthread_mutex_init(ptr @mutex, ptr null)
  %%b = call i32 @pthread_cond_init(ptr @wakeup, ptr null)
  store atomic i64 0, ptr @started monotonic, align 8
  %%limit = load atomic i64, ptr @limit monotonic, align 8
  store atomic i64 %%limit, ptr @capacity monotonic, align 8
  store i64 0, ptr @missing, align 8
  store i64 0, ptr @stop, align 8
  store i64 0, ptr @permits, align 8
  store i64 0, ptr @sleepers, align 8
  store i64 0, ptr @present, align 8
  store ptr null, ptr @open, align 8
  store i64 0, ptr @owner, align 8
  store i64 0, ptr getelementptr (i64, ptr @single, i64 16), align 8
  call void @llvm.memset.p0.i64(ptr align 64 @single.sync, i8 0, i64 %(single_bytes)s, i1 false)
  call void @llvm.memset.p0.i64(ptr align 64 @slots, i8 0, i64 %(slots_bytes)s, i1 false)
  ret i64 0
}

; Let all workers return, and wait for them. The next launch starts new ones. Gives 0 where another
; thread is running a program.
define i64 @graphc_stop() {
entry:
  %%got = call i1 @own()
  br i1 %%got, label %%tell, label %%busy
busy:
  ret i64 0
tell:
  %%l = call i32 @pthread_mutex_lock(ptr @mutex)
  store atomic i64 1, ptr @stop seq_cst, align 8
  %%s = call i32 @pthread_cond_broadcast(ptr @wakeup)
  %%u = call i32 @pthread_mutex_unlock(ptr @mutex)
  br label %%head
head:
  %%i = phi i64 [ 0, %%tell ], [ %%i1, %%body ]
  %%n = load atomic i64, ptr @started monotonic, align 8
  %%more = icmp ult i64 %%i, %%n
  br i1 %%more, label %%body, label %%end
body:
  %%p = getelementptr i64, ptr @handles, i64 %%i
  %%handle = load i64, ptr %%p, align 8
  %%j = call i32 @pthread_join(i64 %%handle, ptr null)
  %%i1 = add i64 %%i, 1
  br label %%head
end:
  store atomic i64 0, ptr @started monotonic, align 8
  store i64 0, ptr @sleepers, align 8
  store i64 0, ptr @permits, align 8
  store atomic i64 0, ptr @stop seq_cst, align 8
  store atomic i64 0, ptr @owner release, align 8
  ret i64 1
}
