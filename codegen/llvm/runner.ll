; The native runner: a pool of threads, and the loop that runs a program's table of launches. See runner.py, which
; fills in the words in parentheses after a percent sign for the machine; a percent sign is written twice.
;
; Invariants:
; - `ticket` is generation << 32 | parts << 16 | next part. A thread may run part `next` only after it has
;   moved the ticket by one with a compare-and-swap. The fields of the launch (@item.*) are written only
;   between launches, that is when every part of the last one is done, so whoever wins a part has read
;   the fields of that part's launch.
; - Only the thread that holds `owner` writes tickets. Whoever cannot get it works alone.
; - A worker that sleeps has counted itself in `sleepers` before it looked at the ticket for the last time, and
;   the owner looks at `sleepers` after it has written the ticket (both sequentially consistent).

@threads = internal global i64 1, align 64
@started = internal global i64 0, align 8
@stop = internal global i64 0, align 8
@owner = internal global i64 0, align 64
@ticket = internal global i64 0, align 64
@done = internal global i64 0, align 64
@sleepers = internal global i64 0, align 64
@item.kernel = internal global ptr null, align 64
@item.extent = internal global i64 0, align 8
@item.args = internal global ptr null, align 8
@item.error = internal global ptr null, align 8
@mutex = internal global [128 x i8] zeroinitializer, align 64
@wakeup = internal global [128 x i8] zeroinitializer, align 64
@handles = internal global [%(most)s x i64] zeroinitializer, align 8

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

; Run parts of the launch in hand until none is left; gives the ticket that said so.
define internal i64 @work() {
entry:
  br label %%again
again:
  %%t = load atomic i64, ptr @ticket seq_cst, align 8
  %%next = and i64 %%t, 65535
  %%shifted = lshr i64 %%t, 16
  %%parts = and i64 %%shifted, 65535
  %%left = icmp ult i64 %%next, %%parts
  br i1 %%left, label %%claim, label %%none
claim:
  %%kernel = load atomic ptr, ptr @item.kernel monotonic, align 8
  %%extent = load atomic i64, ptr @item.extent monotonic, align 8
  %%args = load atomic ptr, ptr @item.args monotonic, align 8
  %%error = load atomic ptr, ptr @item.error monotonic, align 8
  %%moved = add i64 %%t, 1
  %%pair = cmpxchg ptr @ticket, i64 %%t, i64 %%moved seq_cst monotonic
  %%won = extractvalue { i64, i1 } %%pair, 1
  br i1 %%won, label %%run, label %%again
run:
  %%a = mul i64 %%extent, %%next
  %%begin = udiv i64 %%a, %%parts
  %%b = add i64 %%a, %%extent
  %%end = udiv i64 %%b, %%parts
  call void %%kernel(ptr %%args, i64 %%begin, i64 %%end, ptr %%error)
  %%was = atomicrmw add ptr @done, i64 1 release
  br label %%again
none:
  ret i64 %%t
}

; Spin on the ticket for a bounded time, then sleep until it moves or the pool stops.
define internal ptr @worker(ptr %%unused) {
entry:
  %%mode = call i64 @float_enter()
  br label %%serve
serve:
  %%seen = call i64 @work()
  %%start = call i64 @now()
  %%deadline = add i64 %%start, %(spin)s
  br label %%round
round:
  br label %%spin
spin:
  %%i = phi i64 [ 0, %%round ], [ %%i1, %%still ]
  %%t = load atomic i64, ptr @ticket acquire, align 8
  %%new = icmp ne i64 %%t, %%seen
  br i1 %%new, label %%serve, label %%still
still:
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
  br label %%look
look:
  %%t2 = load atomic i64, ptr @ticket seq_cst, align 8
  %%new2 = icmp ne i64 %%t2, %%seen
  %%stopped = load atomic i64, ptr @stop seq_cst, align 8
  %%over = icmp ne i64 %%stopped, 0
  %%wake = or i1 %%new2, %%over
  br i1 %%wake, label %%up, label %%wait
wait:
  %%w = call i32 @pthread_cond_wait(ptr @wakeup, ptr @mutex)
  br label %%look
up:
  %%s2 = atomicrmw sub ptr @sleepers, i64 1 seq_cst
  %%u = call i32 @pthread_mutex_unlock(ptr @mutex)
  br i1 %%over, label %%gone, label %%serve
gone:
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
  %%n = load i64, ptr @started, align 8
  %%less = icmp ult i64 %%n, %%want
  br i1 %%less, label %%create, label %%end
create:
  %%handle = getelementptr i64, ptr @handles, i64 %%n
  %%rc = call i32 @pthread_create(ptr %%handle, ptr %%attr, ptr @worker, ptr null)
  %%ok = icmp eq i32 %%rc, 0
  br i1 %%ok, label %%count, label %%end
count:
  %%n1 = add i64 %%n, 1
  store i64 %%n1, ptr @started, align 8
  br label %%next
end:
  %%e = call i32 @pthread_sigmask(i32 %(setmask)s, ptr %%old, ptr null)
  %%f = call i32 @pthread_attr_destroy(ptr %%attr)
  ret void
}

define internal void @wake(i64 %%count) noinline {
entry:
  %%l = call i32 @pthread_mutex_lock(ptr @mutex)
  br label %%one
one:
  %%i = phi i64 [ 0, %%entry ], [ %%i1, %%one ]
  %%s = call i32 @pthread_cond_signal(ptr @wakeup)
  %%i1 = add i64 %%i, 1
  %%more = icmp ult i64 %%i1, %%count
  br i1 %%more, label %%one, label %%end
end:
  %%u = call i32 @pthread_mutex_unlock(ptr @mutex)
  ret void
}

; One launch in %%pieces parts, by the owner of the pool. Returns when all are done.
define internal void @spread(ptr %%kernel, i64 %%extent, i64 %%pieces, ptr %%args, ptr %%error) {
entry:
  %%others = sub i64 %%pieces, 1
  %%have = load i64, ptr @started, align 8
  %%enough = icmp uge i64 %%have, %%others
  br i1 %%enough, label %%publish, label %%grow
grow:
  call void @start(i64 %%others)
  br label %%publish
publish:
  store atomic ptr %%kernel, ptr @item.kernel monotonic, align 8
  store atomic i64 %%extent, ptr @item.extent monotonic, align 8
  store atomic ptr %%args, ptr @item.args monotonic, align 8
  store atomic ptr %%error, ptr @item.error monotonic, align 8
  store atomic i64 0, ptr @done monotonic, align 8
  %%old = load atomic i64, ptr @ticket monotonic, align 8
  %%generation = lshr i64 %%old, 32
  %%generation1 = add i64 %%generation, 1
  %%high = shl i64 %%generation1, 32
  %%middle = shl i64 %%pieces, 16
  %%new = or i64 %%high, %%middle
  store atomic i64 %%new, ptr @ticket seq_cst, align 8
  %%asleep = load atomic i64, ptr @sleepers seq_cst, align 8
  %%any = icmp ne i64 %%asleep, 0
  br i1 %%any, label %%call, label %%join
call:
  %%count = call i64 @llvm.umin.i64(i64 %%asleep, i64 %%others)
  call void @wake(i64 %%count)
  br label %%join
join:
  %%t = call i64 @work()
  br label %%round
round:
  br label %%spin
spin:
  %%i = phi i64 [ 0, %%round ], [ %%i1, %%still ]
  %%d = load atomic i64, ptr @done acquire, align 8
  %%all = icmp eq i64 %%d, %%pieces
  br i1 %%all, label %%end, label %%still
still:
  %(pause)s
  %%i1 = add i64 %%i, 1
  %%more = icmp ult i64 %%i1, 2000
  br i1 %%more, label %%spin, label %%yield
yield:
  ; The thread that has the last part may be waiting for a core.
  %%y = call i32 @sched_yield()
  br label %%round
end:
  ret void
}

; One launch. %%owned is whether this thread holds the pool; gives whether it does afterwards.
define internal i1 @one(ptr %%kernel, i64 %%extent, i64 %%parts, ptr %%args, ptr %%error, i1 %%owned) {
entry:
  %%threads = load atomic i64, ptr @threads monotonic, align 8
  %%m = call i64 @llvm.umin.i64(i64 %%parts, i64 %%threads)
  %%pieces = call i64 @llvm.umin.i64(i64 %%m, i64 %%extent)
  %%several = icmp ugt i64 %%pieces, 1
  br i1 %%several, label %%pool, label %%alone
pool:
  br i1 %%owned, label %%spread, label %%try
try:
  %%pair = cmpxchg ptr @owner, i64 0, i64 1 acquire monotonic
  %%got = extractvalue { i64, i1 } %%pair, 1
  br i1 %%got, label %%spread, label %%alone
spread:
  call void @spread(ptr %%kernel, i64 %%extent, i64 %%pieces, ptr %%args, ptr %%error)
  ret i1 true
alone:
  call void %%kernel(ptr %%args, i64 0, i64 %%extent, ptr %%error)
  ret i1 %%owned
}

define internal void @release(i1 %%owned) {
entry:
  br i1 %%owned, label %%give, label %%end
give:
  store atomic i64 0, ptr @owner release, align 8
  br label %%end
end:
  ret void
}

define i64 @graphc_launch(ptr %%kernel, i64 %%extent, i64 %%parts, ptr %%args, ptr %%error) {
  %%mode = call i64 @float_enter()
  %%owned = call i1 @one(ptr %%kernel, i64 %%extent, i64 %%parts, ptr %%args, ptr %%error, i1 false)
  call void @release(i1 %%owned)
  call void @float_leave(i64 %%mode)
  %%site = load atomic i64, ptr %%error monotonic, align 8
  %%failed = icmp ne i64 %%site, 0
  %%r = zext i1 %%failed to i64
  ret i64 %%r
}

; A table of launches, {kernel, extent, parts, id, number of arguments, arguments...} each. Stops after a launch that
; reported an error, and puts its id into error[2].
define i64 @graphc_run(ptr %%table, i64 %%count, ptr %%error) {
entry:
  %%mode = call i64 @float_enter()
  br label %%head
head:
  %%i = phi i64 [ 0, %%entry ], [ %%i1, %%fine ]
  %%p = phi ptr [ %%table, %%entry ], [ %%p1, %%fine ]
  %%owned = phi i1 [ false, %%entry ], [ %%owned1, %%fine ]
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
  %%owned1 = call i1 @one(ptr %%kernel, i64 %%extent, i64 %%parts, ptr %%args, ptr %%error, i1 %%owned)
  %%site = load atomic i64, ptr %%error monotonic, align 8
  %%failed = icmp ne i64 %%site, 0
  br i1 %%failed, label %%stop, label %%fine
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
  %%last = phi i1 [ %%owned, %%head ], [ %%owned1, %%stop ]
  call void @release(i1 %%last)
  call void @float_leave(i64 %%mode)
  ret i64 %%r
}

; First table[slot] = pointers[index] + offset for every patch {slot, index, offset}, then run.
define i64 @graphc_run_patched(ptr %%table, i64 %%count, ptr %%patches, i64 %%number, ptr %%pointers, ptr %%error) {
entry:
  br label %%head
head:
  %%i = phi i64 [ 0, %%entry ], [ %%i1, %%body ]
  %%p = phi ptr [ %%patches, %%entry ], [ %%p1, %%body ]
  %%more = icmp ult i64 %%i, %%number
  br i1 %%more, label %%body, label %%run
body:
  %%slot = load i64, ptr %%p, align 8
  %%p.index = getelementptr i64, ptr %%p, i64 1
  %%index = load i64, ptr %%p.index, align 8
  %%p.offset = getelementptr i64, ptr %%p, i64 2
  %%offset = load i64, ptr %%p.offset, align 8
  %%p.pointer = getelementptr i64, ptr %%pointers, i64 %%index
  %%pointer = load i64, ptr %%p.pointer, align 8
  %%sum = add i64 %%pointer, %%offset
  %%p.word = getelementptr i64, ptr %%table, i64 %%slot
  store i64 %%sum, ptr %%p.word, align 8
  %%i1 = add i64 %%i, 1
  %%p1 = getelementptr i64, ptr %%p, i64 3
  br label %%head
run:
  %%r = call i64 @graphc_run(ptr %%table, i64 %%count, ptr %%error)
  ret i64 %%r
}

; The arguments of run_patched as six words at one address.
define i64 @graphc_run_block(ptr %%block) {
  %%table = load ptr, ptr %%block, align 8
  %%p.count = getelementptr i64, ptr %%block, i64 1
  %%count = load i64, ptr %%p.count, align 8
  %%p.patches = getelementptr i64, ptr %%block, i64 2
  %%patches = load ptr, ptr %%p.patches, align 8
  %%p.number = getelementptr i64, ptr %%block, i64 3
  %%number = load i64, ptr %%p.number, align 8
  %%p.pointers = getelementptr i64, ptr %%block, i64 4
  %%pointers = load ptr, ptr %%p.pointers, align 8
  %%p.error = getelementptr i64, ptr %%block, i64 5
  %%error = load ptr, ptr %%p.error, align 8
  %%r = call i64 @graphc_run_patched(ptr %%table, i64 %%count, ptr %%patches, i64 %%number, ptr %%pointers, ptr %%error)
  ret i64 %%r
}

define i64 @graphc_get_threads() {
  %%n = load atomic i64, ptr @threads monotonic, align 8
  ret i64 %%n
}

define i64 @graphc_set_threads(i64 %%n) {
  %%a = call i64 @llvm.smax.i64(i64 %%n, i64 1)
  %%b = call i64 @llvm.umin.i64(i64 %%a, i64 %(most)s)
  store atomic i64 %%b, ptr @threads monotonic, align 8
  ret i64 %%b
}

define i64 @graphc_workers() {
  %%n = load i64, ptr @started, align 8
  ret i64 %%n
}

; At first use, and in the child of a fork, where no worker exists.
define i64 @graphc_reset() {
  %%a = call i32 @pthread_mutex_init(ptr @mutex, ptr null)
  %%b = call i32 @pthread_cond_init(ptr @wakeup, ptr null)
  store i64 0, ptr @started, align 8
  store i64 0, ptr @stop, align 8
  store i64 0, ptr @sleepers, align 8
  store i64 0, ptr @ticket, align 8
  store i64 0, ptr @owner, align 8
  ret i64 0
}

; Let all workers return, and wait for them. The next launch starts new ones. Gives 0 where another
; thread is running a program.
define i64 @graphc_stop() {
entry:
  %%pair = cmpxchg ptr @owner, i64 0, i64 1 acquire monotonic
  %%got = extractvalue { i64, i1 } %%pair, 1
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
  %%n = load i64, ptr @started, align 8
  %%more = icmp ult i64 %%i, %%n
  br i1 %%more, label %%body, label %%end
body:
  %%p = getelementptr i64, ptr @handles, i64 %%i
  %%handle = load i64, ptr %%p, align 8
  %%j = call i32 @pthread_join(i64 %%handle, ptr null)
  %%i1 = add i64 %%i, 1
  br label %%head
end:
  store i64 0, ptr @started, align 8
  store atomic i64 0, ptr @stop seq_cst, align 8
  store atomic i64 0, ptr @owner release, align 8
  ret i64 1
}
