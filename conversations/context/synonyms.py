"""Words that people say and words that documents use for the same thing: a question asks for both.

Common Chinese of offices, shops and schools; each line is one thing. Knows nothing of Django.
"""

from __future__ import annotations

_LINES = """
爸妈 父母 爸爸 妈妈 父亲 母亲
老婆 妻子 配偶 爱人
老公 丈夫 配偶 爱人
小孩 孩子 儿童 子女 娃 小朋友
宝宝 新生儿 婴儿 婴幼儿
爷爷 奶奶 老人 老年人
老板 公司 单位 企业
辞职 离职 离开单位
跳槽 换工作
裁员 裁掉 辞退 解除合同
薪水 工资 薪资 劳动报酬
退休金 养老金
社保 社会保险
医保 医疗保险
个税 个人所得税
驾照 驾驶证
电瓶车 电动车 电动自行车
煤气 燃气 天然气
猫 狗 宠物
房租 租金 租房
买房 购房 购买住房
剖腹产 剖宫产
生孩子 分娩 生育 生产
念书 读书 上学 入学
补习班 培训班 培训机构
补贴 补助 津贴
外地 异地
国外 境外 海外
弄丢 丢失 遗失 丢了 不见了
被偷 被盗 遗失
扔掉 丢弃 投放
罚单 罚款 处罚
违章 违法 违规
不服 异议 申诉
投诉 举报
翻新 装修
还清 结清 偿还
贷出 额度
首付 首付款
快到期 到期 期满
改名 变更姓名
后悔 反悔 撤回 撤销
住址 地址 住所
手机 应用 客户端
证件照 照片 相片
打针 接种 疫苗
看病 就医 就诊
医院 医疗机构
多少钱 费用 收费 价格
几时 何时 什么时候
"""

GROUPS = tuple(tuple(line.split()) for line in _LINES.split("\n") if line)


def other_words(text: str, *, most: int = 12) -> list[str]:
    """Return words for what a folded text says otherwise; those it says itself are left out."""
    found: dict[str, None] = {}
    for group in GROUPS:
        if any(word in text for word in group):
            found.update(dict.fromkeys(word for word in group if word not in text))
    return list(found)[:most]
