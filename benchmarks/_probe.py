def probe(value):
    import sys,time
    return {"cpu":time.process_time(),"big":[m for m in ("prefect.server.api.server","litellm","prefect.server","fastapi","openai","numpy","pandas","docket","prefect_dispatch.flows.run_job","prefect_dispatch.integrators.base","benchmarks.processes") if m in sys.modules],"n":len(sys.modules)}
if __name__=="__main__":
    from benchmarks._probe import probe as p
    from prefect_dispatch import Brief, PythonCallable, dispatch, Limits
    r=dispatch(Brief(name="w",instructions="w",output={"type":"object"}),[{"n":i} for i in range(4)],executor=PythonCallable(p),task_runner={"kind":"processes","workers":1},limits=Limits(concurrency=1))
    for o in r.outcomes: print(o.value)
    import os; print(os.times())
